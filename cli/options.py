"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from swav_tf.training.rendezvous import ClusterAddress


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --nodes, --node-rank and --master."""
    for option in (
        click.option(
            "--master", metavar="HOST:PORT", help="Address of machine 0, which every machine can reach."
        ),
        click.option(
            "--node-rank", type=click.IntRange(min=0), metavar="N", help="This machine's number, 0 to N - 1."
        ),
        click.option(
            "--nodes", type=click.IntRange(min=1), metavar="N", help="Machines that train together."
        ),
    ):
        command = option(command)
    return command


def cluster_of(nodes: int | None, node_rank: int | None, master: str | None) -> ClusterAddress | None:
    """The cluster that the options describe, or None if they describe none."""
    if nodes is None and node_rank is None and master is None:
        return None
    if nodes is None or node_rank is None or master is None:
        raise click.UsageError("--nodes, --node-rank and --master belong together: give all three or none.")

    from swav_tf.training.rendezvous import ClusterAddress

    return ClusterAddress(nodes=nodes, node_rank=node_rank, master=master)


Option = Callable[[Any], Any]

# === Recipes ===

config_option = click.option(
    "-c",
    "--config",
    required=True,
    metavar="FILE_OR_NAME",
    help="Recipe: a YAML file, or a name from `swav-tf config list`.",
)
override_option = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as train.epochs=10 or crops.0.size=160. May be repeated.",
)

# === Models and images ===

data_argument = click.argument("data", required=False)
model_option = click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="Run folder of `swav-tf pretrain` (its newest checkpoint is used), or a file by `swav-tf export`.",
)
provider_option = click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    help="Where ONNX Runtime runs an ONNX file; an error if it cannot, never another.  [default: cpu]",
)
kind_option = click.option(
    "--kind",
    metavar="KIND",
    help="How DATA is read: class_folders, images, tfrecord, tfds or digits.  [default: as the model's images]",
)
split_option = click.option(
    "--split", metavar="NAME", help="Split of digits or a TFDS data set.  [default: the model's]"
)
given_split_option = click.option(
    "--split", metavar="NAME", default="train", show_default=True, help="Split of digits or a TFDS data set."
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    default=128,
    show_default=True,
    help="Images that the model sees at once.",
)
max_bad_share_option = click.option(
    "--max-bad-share",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Largest share of unreadable images; more is an error.  [default: as in the model's recipe]",
)


def threads_option(meaning: str) -> Option:
    """`--threads`: what they do."""
    return click.option(
        "--threads",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help=f"{meaning}; 0: one per core.",
    )


decoding_threads_option = threads_option("Threads that decode images")
computing_threads_option = threads_option("Threads that compute a batch on a CPU")


def seed_option(meaning: str, *, default: int = 0) -> Option:
    """`--seed`: of what."""
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        metavar="N",
        default=default,
        show_default=True,
        help=meaning,
    )


# === What is written and printed ===


def run_dir_option(meaning: str, **settings: Any) -> Option:
    """`--run-dir`: what the folder of a run gets; `settings` as click takes them."""
    usual: dict[str, Any] = {
        "type": click.Path(file_okay=False, path_type=Path),
        "metavar": "DIR",
        "help": meaning,
    }
    return click.option("--run-dir", **usual | settings)


def output_option(meaning: str, **settings: Any) -> Option:
    """`-o`: what a command writes; `settings` as click takes them."""
    usual: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "FILE", "help": meaning}
    return click.option("-o", "--output", **usual | settings)


def make_folder(output: Path) -> None:
    """Makes the folder that `-o` names: before anything is computed for it.

    Raises:
        click.UsageError: it is a file.
    """
    if output.exists() and not output.is_dir():
        raise click.UsageError(f"-o must be a folder. Received: {output}, a file.")
    output.mkdir(parents=True, exist_ok=True)


quiet_option = click.option("--quiet", is_flag=True, help="No progress on the terminal.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2))


# === Values separated by commas ===


def names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names, each once; None where there is no value."""
    return None if value is None else tuple(dict.fromkeys(word.strip() for word in value.split(",")))


def counts(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers >= 1, smallest first, each once."""
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise click.BadParameter(
            f"must be whole numbers >= 1 separated by commas, such as 1,8. Received: {value}"
        )
    return tuple(sorted({int(word) for word in words}))
