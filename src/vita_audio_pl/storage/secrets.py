"""Credentials in URLs: whoever writes settings, names or messages takes them out first.

A URL may hold a name and a password (`https://name:secret@host/data`) or a token (`?X-Amz-Signature=...`, `?sig=...`). The
command needs them; its files, its logs and what it sends to a tracker must not have them.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

T = TypeVar("T")
_CLEANS = "_cleans_credentials"

_SCHEME = r"\b[A-Za-z][A-Za-z0-9+.\-]*:"
# everything up to the last @ in front of the path; a password with a slash in it is distinguished from a port by its digits, and
# pathlib makes one slash of two
_USER = re.compile(
    rf'({_SCHEME}//)(?:[^\s/"]*@|[^\s/@:"]+:(?!\d+[/?#])[^\s@"]*@)|({_SCHEME}/)(?!/)[^\s/@:"]+:[^\s@"]*@'
)
_QUERY = re.compile(rf"""({_SCHEME}/+[^\s?#"]*)[?#]([^\s"]*[^\s"'<>,;:.)\]}}])""")
_SECRET = re.compile(
    r"(?:^|[&;?#])(?:x-amz-|x-goog-|[^=&]*(?:sig|token|secret|passw|pwd|key|cred|auth|sas))[^=&]*=", re.I
)


def without_credentials(value: T) -> T:
    """`value` without the credentials of the URLs in its texts, whole or in the middle of a sentence.

    Mappings (their keys, too), lists and tuples are gone through; a query that holds a token is dropped whole, since the
    rest of it (a date, an expiry) belongs to the token. Everything else is left as it is.
    """
    cleaned: Any = value
    if isinstance(value, str):
        cleaned = _of_text(value)
    elif isinstance(value, Mapping):
        cleaned = {without_credentials(key): without_credentials(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        cleaned = [without_credentials(item) for item in value]
        cleaned = tuple(cleaned) if isinstance(value, tuple) else cleaned
    return cast(T, cleaned)


@contextmanager
def command_line_without_credentials() -> Iterator[None]:
    """While a library that writes down the command line (wandb) starts."""
    before = sys.argv
    sys.argv = without_credentials(before)
    try:
        yield
    finally:
        sys.argv = before


def keep_credentials_out_of_logs() -> None:
    """Makes every record of `logging` in this process one without credentials."""
    make = logging.getLogRecordFactory()

    def clean(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        record.msg, record.args = without_credentials(record.getMessage()), ()
        return record

    if not getattr(make, _CLEANS, False):
        setattr(clean, _CLEANS, True)
        logging.setLogRecordFactory(clean)


def _of_text(text: str) -> str:
    if ":/" not in text:
        return text
    text = _USER.sub(lambda found: found[1] or found[2], text)
    return _QUERY.sub(lambda found: found[1] if _SECRET.search(found[2]) else found[0], text)
