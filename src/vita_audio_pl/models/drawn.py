"""Random initial values of a model on the meta device, drawn later and piece by piece: the same numbers that the model would have
got if it had been built in host memory at once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PIECE = 1 << 22  # elements that are drawn at once, a multiple of 16


class Drawing(TorchDispatchMode):
    """While it is active, new tensors are on the meta device, and how they are filled is noted; `values` does it in host memory.

    `torch.device("meta")` will not do: transformers initialises nothing inside it. The numbers are those of torch's generator
    for the CPU as it was when the object was made.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._generator = torch.get_rng_state()
        self._calls: list[tuple[Callable[..., Any], Tensor, tuple[Any, ...], dict[str, Any]]] = []
        self._names: dict[int, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(isinstance(value, Tensor) for value in args):
            if any(argument.name == "device" for argument in func._schema.arguments):
                kwargs["device"] = torch.device("meta")
        elif func._schema.is_mutable and args[0].is_meta and not any(isinstance(value, Tensor) for value in args[1:]):
            self._calls.append(
                (func, args[0].detach(), args[1:], kwargs)
            )  # kept, so that its storage's place stays its own
        return func(*args, **kwargs)

    def named(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Says which of the noted tensors are wanted, while they are those that were filled (before they change their type).

        Raises:
            RuntimeError: one was never filled as a whole, as by `torch.ones`, whose values nothing notes.
        """
        begins, names = self._begins(), {_place(parameter): name for name, parameter in parameters}
        if unknown := [name for place, name in names.items() if place not in begins]:
            raise RuntimeError(
                f"{unknown[0]} begins with values that were not noted: fill it in place, as torch.nn.init does"
            )
        self._names |= names

    @property
    def names(self) -> set[str]:
        return set(self._names.values())

    @torch.no_grad()
    def values(self) -> Iterator[tuple[str, int, Tensor]]:
        """What the wanted tensors are filled with, in order, in pieces: name, first element, and values, flat; later ones win."""
        begins = self._begins()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator)
            for number, (func, tensor, arguments, named) in enumerate(self._calls):
                assert tensor.is_contiguous()  # so are whole parameters and their rows
                name = self._names.get(_place(tensor)) if number >= begins.get(_place(tensor), 0) else None
                for first, size in _pieces(tensor.numel()):
                    piece = torch.empty(size, dtype=tensor.dtype)  # drawn in any case: what follows depends on it
                    func(piece, *arguments, **named)
                    if name is not None:
                        yield name, int(tensor.storage_offset()) + first, piece

    def _begins(self) -> dict[int, int]:
        """Number of the last call that filled a whole tensor, by its place: what was there before does not matter."""
        return {
            _place(tensor): number
            for number, (_, tensor, _, _) in enumerate(self._calls)
            if tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        }


def _pieces(elements: int) -> Iterator[tuple[int, int]]:
    """First element and size of pieces that torch draws as it would draw the whole: it makes normal numbers by sixteen."""
    first = 0
    while elements - first >= _PIECE + 16:
        yield first, _PIECE
        first += _PIECE
    yield first, elements - first


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
