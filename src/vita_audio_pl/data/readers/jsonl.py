"""Our own format: JSONL files of `{"messages": [...], "audios": [path, ...], "id": name}`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vita_audio_pl.data.readers.base import AudioFile, Part, RawSample, Unreadable, files_matching
from vita_audio_pl.errors import UserError
from vita_audio_pl.text import Conversation


@dataclass(frozen=True)
class JsonlReader:
    """Conversations, one on a line.

    Attributes:
        root: folder that relative audio paths start from.
        files: globs below `root`, or absolute paths.
        lines_per_part: lines that one task takes.
    """

    root: Path
    files: tuple[str, ...] = ("*.jsonl",)
    lines_per_part: int = 2000

    def parts(self) -> list[Part]:
        parts = []
        for path in files_matching(self.root, self.files):
            offset, first = 0, 1
            with open(path, "rb") as file:
                while lines := list(islice(file, self.lines_per_part)):
                    content = hashlib.sha256(b"".join(lines)).hexdigest()
                    where: dict[str, str | int] = {
                        "path": str(path),
                        "offset": offset,
                        "line": first,
                        "lines": len(lines),
                    }
                    parts.append(Part(f"{path.name}:{first}", content, where))
                    offset, first = file.tell(), first + len(lines)
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        path, first = Path(str(part.where["path"])), int(part.where["line"])
        with open(path, "rb") as file:
            file.seek(int(part.where["offset"]))
            for number, line in enumerate(islice(file, int(part.where["lines"])), first):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    conversation = Conversation.from_json(line.decode("utf-8"), where)
                except UserError as error:
                    yield Unreadable(where, str(error))
                    continue
                except UnicodeDecodeError as error:
                    yield Unreadable(where, f"{where}: not UTF-8 ({error})")
                    continue
                yield RawSample(conversation, tuple(AudioFile(self.root / name) for name in conversation.audios))
