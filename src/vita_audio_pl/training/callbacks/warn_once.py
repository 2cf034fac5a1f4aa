"""Failures outside the training step are logged once, and training continues."""

import logging

log = logging.getLogger(__name__)


class WarnOnce:
    """Logs a failure the first time only; many repeat at every step."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, what: str, why: Exception) -> None:
        """Log `what: why; training continues`, in one line."""
        sentence = f"{what}: {' '.join(str(why).split()) or type(why).__name__}; training continues"
        if sentence not in self._told:
            self._told.add(sentence)
            log.warning(sentence)
