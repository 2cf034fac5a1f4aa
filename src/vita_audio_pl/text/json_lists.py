"""Lists in JSON files of any size, one element at a time."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place
from vita_audio_pl.text.lines import LONGEST_LINE, open_text

_CHUNK = 1 << 22  # bytes read at a time
_AHEAD = 3  # characters after a value that show that it is whole: `1` may go on as `1e-9`
_BLANKS = " \t\r\n"
_DECODER = json.JSONDecoder(strict=False)  # only where a value ends is asked; who reads it judges it


@dataclass(frozen=True)
class ElementBlock:
    """Elements of a list that follow one another.

    Attributes:
        first: number of the first, from 0.
        count: how many.
        offset: byte where they begin.
    """

    first: int
    count: int
    offset: int


def element_blocks(path: Place, elements: int, key: str = "") -> Iterator[ElementBlock]:
    """Cuts a list into blocks of so many elements, the last with the rest.

    Args:
        path: a file that holds a list, or an object with a list in it.
        elements: in a block.
        key: of the list in the object; empty where the file holds the list itself.

    Raises:
        UserError: the file cannot be opened, or holds no such list; or the list is damaged, after the blocks before.
    """
    with open_text(path) as file:
        window = _Window(file, path, 0)
        window.enter(key)
        first, count, offset = 0, 0, 0
        try:
            for at, _ in window.elements():
                offset = offset if count else at
                count += 1
                if count == elements:
                    yield ElementBlock(first, count, offset)
                    first, count = first + count, 0
            if not key:
                window.leave()
        except UserError:
            if count:
                yield ElementBlock(first, count, offset)
            raise
        if count:
            yield ElementBlock(first, count, offset)


def read_elements(path: Place, block: ElementBlock) -> Iterator[str]:
    """Texts of the elements of a block; bytes that are not UTF-8 come as lone surrogates."""
    with path.open("rb") as file:
        file.seek(block.offset)
        elements = _Window(file, path, block.offset).elements()
        for _ in range(block.count):
            yield next(elements)[1]


class _Window:
    """A piece of a file that is read on as it is needed: `text` from `place` on, which is byte `at` of the file."""

    def __init__(self, file: BinaryIO, path: Place, at: int):
        self._file, self._path, self._at = file, path, at
        self._text, self._place = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def enter(self, key: str) -> None:
        """Goes to the first element of the list."""
        if self._next() == "\ufeff":
            self._pass(1)
        if key and self._next() == "{":
            self._pass(1)
            while self._next() == '"':
                name = _DECODER.decode(self._value())
                if self._next() != ":":
                    break
                self._pass(1)
                if name == key:
                    break
                self._next()
                self._value()
                if self._next() == ",":
                    self._pass(1)
        if self._next() != "[":
            wanted = (
                f"an object with a list '{key:.100}'" if key else "a list of rows; give .jsonl files for one row a line"
            )
            raise UserError(f"{self._path} cannot be read as JSON: it must hold {wanted}")
        self._pass(1)

    def elements(self) -> Iterator[tuple[int, str]]:
        """Byte and text of each element from here to the end of the list."""
        if self._next() == "]":
            return
        while True:
            self._next()
            yield self._at, self._value()
            if (mark := self._next()) == "]":
                return
            if mark != ",":
                raise self._damaged("there is no comma between two elements" if mark else "it ends within its list")
            self._pass(1)

    def leave(self) -> None:
        """Checks that the file ends with the list."""
        self._pass(1)
        if self._next():
            raise self._damaged("there is something after its list")

    def _next(self) -> str:
        """The next character that is no blank; "" at the end of the file."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _BLANKS:
                    return self._text[self._place]
                self._pass(1)
            if not self._more():
                return ""

    def _value(self) -> str:
        """The text of the value that begins here, passed over."""
        while True:
            problem, size = "", 0
            try:
                size = _DECODER.raw_decode(self._text, self._place)[1] - self._place
            except RecursionError:
                raise self._damaged("it is nested too deeply") from None
            except ValueError as error:
                problem = str(error)
            if size and self._place + size + _AHEAD <= len(self._text):
                return self._pass(size)
            if len(self._text) - self._place > LONGEST_LINE:  # characters, so at least as many bytes
                raise self._damaged(problem or f"an element is larger than {LONGEST_LINE >> 20} MiB")
            if not self._more():
                if size:
                    return self._pass(size)
                raise self._damaged(problem)

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._text, self._place = self._text[self._place :] + self._decoder.decode(chunk, final=not chunk), 0
        return bool(chunk)

    def _pass(self, characters: int) -> str:
        passed = self._text[self._place : self._place + characters]
        self._place += characters
        self._at += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        return passed

    def _damaged(self, problem: str) -> UserError:
        return UserError(f"{self._path} cannot be read as JSON from byte {self._at} on: {problem}")
