"""Options and steps that `duplicates` and `outliers` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import PATH, make_folder, option_group, output_option
from cli.progress import share_progress

if TYPE_CHECKING:
    from evaluate.feature_file import FeatureFile
    from evaluate.neighbors import Graph
    from evaluate.search import SearchIndex


@dataclass(frozen=True)
class SearchChoice:
    """Features, an optional index of them, and the output folder."""

    features: Path
    index: Path | None
    output: Path
    data: str | None

    def graph(self, *, quiet: bool) -> tuple[FeatureFile | SearchIndex, Graph]:
        """Open the features or their index, and find the neighbors of each image."""
        from evaluate.feature_file import read_feature_file
        from evaluate.neighbors import check_images, neighbor_graph
        from evaluate.search import open_index

        file = (
            read_feature_file(self.features) if self.index is None else open_index(self.index, self.features)
        )
        make_folder(self.output)
        check_images(file, self.data)  # not after the search, which may take hours
        with share_progress("neighbors", quiet=quiet) as progress:
            return file, neighbor_graph(file, on_progress=progress)


search_options = option_group(
    "search",
    SearchChoice,
    click.argument("features", type=PATH),
    click.option(
        "--index", type=PATH, metavar="FILE", show_default="exact search",
        help="Index of FEATURES, built by `swav-tf index`; recommended above 100,000 images.",
    ),
    output_option("Folder for the page and the table.", metavar="DIR", required=True),
    click.option("--data", metavar="DATA", help="Location of the images, if they have moved."),
)  # fmt: skip
