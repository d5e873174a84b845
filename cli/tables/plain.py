"""One table on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, left: Sequence[str] = ()
) -> None:
    """Print rows under headings, right-aligned except for the columns named in `left`."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(highlight=False, soft_wrap=True, markup=False).print(table)
