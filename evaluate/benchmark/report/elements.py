"""The elements that the sections of a page are made of: text goes in, HTML comes out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def section(title: str, content: str) -> str:
    """A heading, and HTML below it."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table with a line of headings; it scrolls where the page is too narrow.

    Args:
        heads: texts.
        rows: HTML, as by `row`.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def row(texts: Sequence[str], *, kind: str = "", last: str = "") -> str:
    """A row of a table.

    Args:
        texts: of its cells.
        kind: class of the page's style; none if empty.
        last: HTML of further cells.
    """
    of_kind = f' class="{kind}"' if kind else ""
    return f"<tr{of_kind}>{''.join(f'<td>{escape(text)}</td>' for text in texts)}{last}</tr>"


def milliseconds(ms: float | None) -> str:
    """A time, as exact as it is of interest."""
    return "-" if ms is None else f"{ms:,.3f}" if ms < 10 else f"{ms:,.1f}"
