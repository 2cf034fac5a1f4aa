"""File names made of what people call things."""

import hashlib

_LONGEST = 120  # bytes; file systems take 255, and names get endings and partial marks


def storable(text: str) -> str:
    r"""`text` as UTF-8 can hold it: half a surrogate pair becomes the characters `\ud83d`."""
    return text.encode("utf-8", "backslashreplace").decode()


def safe_name(text: str) -> str:
    """A file name for `text`: letters, digits and `-_.+` stay, and a text that loses something gets a hash of itself.

    So equal names mean equal texts, no name leads out of its folder, hides in it, or is too long.
    """
    name = "".join(char if char.isalnum() or char in "-_.+" else "_" for char in text).lstrip(".")
    if name == text and 0 < len(name.encode()) <= _LONGEST:
        return name
    start = name.encode("utf-8", "replace")[: _LONGEST - 20].decode("utf-8", "ignore")
    return f"{start}-{hashlib.sha256(storable(text).encode()).hexdigest()[:10]}"
