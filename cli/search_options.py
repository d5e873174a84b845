"""Options and steps that `duplicates` and `outliers` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import PATH, index_option, make_folder, moved_option, option_group, output_option
from cli.progress import share_progress

if TYPE_CHECKING:
    from evaluate.neighbors import Graph
    from evaluate.search import Searchable


@dataclass(frozen=True)
class SearchChoice:
    """Features, an optional index of them, and the output folder."""

    features: Path
    index: Path | None
    output: Path
    data: str | None

    def graph(self, *, quiet: bool) -> tuple[Searchable, Graph]:
        """Open the features or their index, and find the neighbors of each image."""
        from evaluate.neighbors import neighbor_graph, open_found
        from evaluate.search import open_searchable

        file = open_searchable(self.features, self.index)
        make_folder(self.output)
        open_found(file, (), self.data)  # reports moved images now, not after the search of hours
        with share_progress("neighbors", quiet=quiet) as progress:
            return file, neighbor_graph(file, on_progress=progress)


search_options = option_group(
    "search",
    SearchChoice,
    click.argument("features", type=PATH),
    index_option("of FEATURES; recommended above 100,000 images"),
    output_option("Folder for the page and the table.", metavar="DIR", required=True),
    moved_option,
)
