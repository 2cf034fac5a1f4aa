"""Corpora of English speech with transcripts."""

from pathlib import Path

from miniatures.base import Expected, miniature, sound, write


@miniature(
    "librispeech",
    train=Expected(["chapter sixteen i might have told you", "we'll go", "he was tall"], 2.0),
    dev=Expected(["mister quilter"], 0.5),
)
def librispeech(root: Path) -> None:
    """SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac and one .trans.txt a chapter."""
    said = {
        "train-clean-100/103/1240/103-1240-0000": (0.5, "CHAPTER SIXTEEN I MIGHT HAVE TOLD YOU"),
        "train-clean-360/14/208/14-208-0000": (1.0, "WE'LL GO"),
        "train-other-500/20/205/20-205-0000": (0.5, "HE WAS TALL"),
        "dev-clean/1272/128104/1272-128104-0000": (0.5, "MISTER QUILTER"),
        "test-clean/61/70968/61-70968-0000": (0.5, "NEVER READ"),
    }
    for name, (seconds, text) in said.items():
        path = root / f"{name}.flac"
        write(path, sound(seconds, format="FLAC"))
        speaker, chapter, _ = path.stem.split("-")
        write(path.parent / f"{speaker}-{chapter}.trans.txt", f"{path.stem} {text}\n")
    for name in ("BOOKS.TXT", "CHAPTERS.TXT", "LICENSE.TXT", "README.TXT", "SPEAKERS.TXT"):
        write(root / name, "about the corpus\n")
