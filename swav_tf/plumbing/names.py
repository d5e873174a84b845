"""Names of files and numbers of things as text. Linux allows any bytes in names; people and JSON need characters."""

from __future__ import annotations

import os


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, whose plural ends in s unless given: `1 image`, `1,234 images`, `2 classes`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(name: str) -> str:
    r"""Return a name on one line, with characters that cannot be shown as escapes.

    Newlines, control characters (a terminal would obey them) and bytes that are not UTF-8, which
    Python keeps as surrogates, come out as `\n`, `\x1b` and `\xe9`.
    """
    if name.isprintable():
        return name
    return "".join(character if character.isprintable() else _escape(character) for character in name)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that is not valid UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def name_bytes(name: str) -> bytes:
    """Return the bytes of a name on disk."""
    return name.encode("utf-8", "surrogateescape")


def text_of(name: bytes) -> str:
    """Return a name on disk as text, the same in every locale. To open the file, see `native`."""
    return name.decode("utf-8", "surrogateescape")


def native(path: str) -> str:
    """Return a path as Python opens it, which differs where the locale's encoding is not UTF-8."""
    return os.fsdecode(name_bytes(path))
