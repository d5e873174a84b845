"""Options that several commands share. A group of options reaches its command as one object."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.progress import share_progress
from swav_tf.plumbing.errors import DataError, SwavError, UsageError
from swav_tf.plumbing.files import check_writable
from swav_tf.plumbing.log import show_log
from swav_tf.plumbing.values import comma_list

if TYPE_CHECKING:
    from evaluate.backends.backend import Backend
    from evaluate.images import ImageSet
    from evaluate.neighbors import Graph
    from evaluate.search import Searchable
    from swav_tf.recipe.data import Data
    from swav_tf.training.rendezvous import ClusterAddress

Option = Callable[[Any], Any]


def option_group(argument: str, build: Callable[..., Any], *options: Option) -> Option:
    """Attach options to a command, which receives `build(name=value, ...)` as its parameter `argument`.

    The parameters of `build` have the options' names; `--help` lists the options in this order.
    """
    names = option_names(*options)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_group(*args: Any, **values: Any) -> Any:
            built = build(**{name: values.pop(name) for name in names})
            return command(*args, **values, **{argument: built})

        for option in reversed(options):
            with_group = option(with_group)
        return with_group

    return decorate


def option_names(*options: Option) -> tuple[str, ...]:
    """Return the parameter names of options."""

    @click.command()
    def none() -> None:
        pass

    command = functools.reduce(lambda command, option: option(command), options, none)
    return tuple(str(parameter.name) for parameter in command.params)


# === Kinds of options ===

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Output(click.Path):
    """A file or folder to write, checked before any work is done for it; with `allow_dash`, `-` is stdout."""

    def __init__(self, refusal: type[SwavError] = DataError, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)
        self.refusal = refusal

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path = super().convert(value, param, ctx)
        if value == "-" and not self.allow_dash:
            self.fail("must be a path: this command does not write to stdout. Received: -", param, ctx)
        if "://" in str(value):
            self.fail(
                f"must be a path on this machine, to be copied to a store. Received: {value}", param, ctx
            )
        if value != "-":
            check_writable(Path(str(path)), self.refusal)
        return path


NEW_PATH = Output()
NEW_FILE = Output(dir_okay=False)
NEW_FOLDER = Output(file_okay=False)


def count_option(*names: str, least: int = 1, most: int | None = None, **settings: Any) -> Option:
    """Return an option for an integer; `settings` are passed to click."""
    usual: dict[str, Any] = {"type": click.IntRange(least, most), "metavar": "N"}
    return click.option(*names, **usual | settings)


def is_default(parameter: str) -> bool:
    """Return whether a parameter of the running command has its default, which may then adapt."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.DEFAULT


def refuse_given(parameters: Iterable[str], reason: str) -> None:
    """Raise UsageError if any of these parameters of the running command is given."""
    wanted = set(parameters)
    given = [
        parameter.opts[0]
        for parameter in click.get_current_context().command.params
        if parameter.name in wanted and not is_default(parameter.name)
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)}: {reason}")


def amount_option(*names: str, **settings: Any) -> Option:
    """Return an option for a number greater than 0; `settings` are click's."""
    return click.option(*names, type=click.FloatRange(0, min_open=True), **settings)


# === Images ===

KINDS = ("class_folders", "images", "list", "tar", "parquet", "tfrecord", "tfds", "digits")


@dataclass(frozen=True)
class ImageChoice:
    """Images on the command line."""

    data: str | None
    kind: str | None = None
    split: str | None = None
    labels: str | None = None

    def open(self, like: Data) -> ImageSet:
        """Open the images; options that are absent are as in `like`, usually those of a model's training images."""
        from evaluate.images import open_images

        return open_images(self.data, like=like, kind=self.kind, split=self.split, labels=self.labels)


def image_options(
    *, required: bool = False, kinds: Sequence[str] = KINDS, default: str = "detected, or the model's"
) -> Option:
    """Return DATA, --kind, --split and --labels; `default` says in the help where their defaults come from."""
    return option_group(
        "images",
        ImageChoice,
        click.argument("data", required=required),
        click.option("--kind", type=click.Choice(kinds), show_default=default, help="Kind of data in DATA."),
        click.option(
            "--split",
            metavar="NAME",
            show_default="train" if required else "the model's",
            help="Split of digits, a TFDS data set, or a folder of Parquet or tar files.",
        ),
        click.option(
            "--labels",
            metavar="FILE",
            help="List of labels for images that have none; same as the setting data.labels.",
        ),
    )


moved_option = click.option("--data", metavar="DATA", help="Location of the images, if they have moved.")


def index_option(meaning: str) -> Option:
    """Return --index, an index of features; `meaning` continues the help."""
    help_text = f"Index created by `swav-tf index`; {meaning}."
    return click.option("--index", type=PATH, metavar="FILE", show_default="exact search", help=help_text)


batch_option = count_option("--batch", default=128, help="Images per batch.")


def threads_option(meaning: str) -> Option:
    """Return --threads; `meaning` is what the threads do."""
    return count_option("--threads", least=0, default=0, help=f"{meaning}; 0 means one per core.")


@dataclass(frozen=True)
class ReadingChoice:
    """How images are read and batched."""

    batch: int
    threads: int
    max_bad_share: float | None

    def bad_share_of(self, model: Backend) -> float:
        """Return the largest allowed share of unreadable images, by default that of the model's recipe."""
        return model.data.max_bad_share if self.max_bad_share is None else self.max_bad_share


reading_options = option_group(
    "reading",
    ReadingChoice,
    batch_option,
    threads_option("Threads that decode images"),
    click.option(
        "--max-bad-share",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        show_default="as in the model's recipe",
        help="Largest acceptable share of unreadable images; above it, the command fails.",
    ),
)

# === Machines ===


def _cluster(nodes: int | None, node_rank: int | None, master: str | None) -> ClusterAddress | None:
    if nodes is None and node_rank is None and master is None:
        return None
    if nodes is None or node_rank is None or master is None:
        raise click.UsageError(
            "--nodes, --node-rank and --master must be used together: pass all three or none."
        )
    from swav_tf.training.rendezvous import ClusterAddress

    return ClusterAddress(nodes=nodes, node_rank=node_rank, master=master)


cluster_options = option_group(
    "cluster",
    _cluster,
    count_option("--nodes", help="Number of machines that train together."),
    count_option("--node-rank", least=0, help="Rank of this machine, starting at 0."),
    click.option("--master", metavar="HOST:PORT", help="Address of machine 0, reachable from all machines."),
)

# === Output ===


def seed_option(meaning: str, *, default: int = 0) -> Option:
    """Return --seed; `meaning` is what depends on it."""
    return count_option("--seed", least=0, most=2**32 - 1, default=default, help=f"Random seed of {meaning}.")


def run_dir_option(meaning: str, **settings: Any) -> Option:
    """Return --run-dir; `settings` are click's."""
    kind = Output(UsageError, file_okay=False)
    return click.option("--run-dir", type=kind, metavar="DIR", help=meaning, **settings)


fresh_option = click.option(
    "--fresh",
    is_flag=True,
    help="Start over; the earlier run is moved to previous-N/.",
    show_default="resume",
)


def output_option(meaning: str, **settings: Any) -> Option:
    """Return --output; `settings` are click's."""
    usual: dict[str, Any] = {"type": NEW_PATH, "metavar": "FILE", "help": meaning}
    return click.option("--output", **usual | settings)


def part_option(verb: str, meaning: str, *, otherwise: str) -> Option:
    """Return `--part I/N`, for `swav_tf.plumbing.parts.part_numbers`."""
    return click.option(
        "--part",
        metavar="I/N",
        show_default=f"the task of a SLURM array, else {otherwise}",
        help=f"{verb} part I of N (1/N to N/N). {meaning}.",
    )


def _picture(context: click.Context, option: click.Parameter, path: Path) -> Path:
    from swav_tf.data.pictures import check_picture

    check_picture(path)
    return path


def picture_option(default: str) -> Option:
    """Return --output for a picture; its extension is checked before any work."""
    meaning = "Picture to write; the extension determines the format."
    return output_option(meaning, default=Path(default), callback=_picture)


def make_folder(output: Path) -> None:
    """Create the folder that --output names, before any work."""
    if output.exists() and not output.is_dir():
        raise click.UsageError(f"--output must be a folder. Received: {output}, a file.")
    output.mkdir(parents=True, exist_ok=True)


class Report:
    """Print messages and progress on stderr, and the result on stdout as text or JSON."""

    def __init__(self, as_json: bool, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet or as_json
        show_log(logging.WARNING if self.quiet else logging.INFO)

    def show(self, document: Any, lines: Iterable[str] = ()) -> None:
        """Print the result: the document with --json, else the lines."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2))
        else:
            for line in lines:
                click.echo(line)


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else on stdout."
)
quiet_option = click.option(
    "--quiet", is_flag=True, help="Print only warnings, errors and the result, no progress."
)
json_options = option_group("report", lambda as_json: Report(as_json), _json_option)
report_options = option_group("report", Report, quiet_option, _json_option)

# === Features to search, for `duplicates` and `outliers` ===


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
    index_option("recommended above 100,000 images"),
    output_option("Folder for the page and the table.", metavar="DIR", required=True),
    moved_option,
)

# === Values separated by commas ===


def names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Parse names, each once; None if the option is absent."""
    return None if value is None else comma_list(value)


def counts(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Parse whole numbers >= 1; return them sorted, each once."""
    words = comma_list(value)
    if not words or not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise click.BadParameter(
            f"must be whole numbers >= 1 separated by commas, such as 1,8. Received: {value}"
        )
    return tuple(sorted({int(word) for word in words}))
