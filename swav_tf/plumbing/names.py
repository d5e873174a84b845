"""File names as text: Linux allows any bytes in them, people and JSON want one line of characters. No TensorFlow."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""A name on one line, in characters that can be shown; others are written as escapes.

    Newlines, control characters (a terminal would obey them) and bytes that are no UTF-8, which
    Python keeps as surrogates, come out as `\n`, `\x1b` and `\xe9`.
    """
    if name.isprintable():
        return name
    return "".join(character if character.isprintable() else _escape(character) for character in name)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python spells a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def name_bytes(name: str) -> bytes:
    """The bytes that the name has on disk."""
    return name.encode("utf-8", "surrogateescape")
