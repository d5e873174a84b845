"""What one worker of a team says, and where: its consoles, its list of images that cannot be read."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from swav_tf.data.bad_images import BadImages
from swav_tf.recipe import Data
from swav_tf.training.cluster.strategy import Topology


def consoles(team: Topology, *, quiet: bool) -> tuple[Console, Console]:
    """For progress, and for warnings, which are told in any case; only the chief speaks."""
    progress, warnings = (
        Console(stderr=True, quiet=silent or not team.is_chief, highlight=False, soft_wrap=True)
        for silent in (quiet, False)
    )
    return progress, warnings


def bad_images_of(run_dir: Path, team: Topology, data: Data, *, images: int) -> BadImages:
    """This worker's tally, listed in a file of its own below the run folder.

    Args:
        run_dir: folder of the run.
        team: says which worker this is.
        data: says what share is allowed.
        images: of the whole source.
    """
    name = "bad_images.txt" if team.is_chief else f"bad_images.worker{team.worker}.txt"
    return BadImages(run_dir / name, images=images, max_share=data.max_bad_share)
