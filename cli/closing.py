"""The last words of `swav-tf pretrain`: where the run is, what came of it, what can be done with it."""

from __future__ import annotations

import shlex
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swav_tf.recipe.pretraining import Recipe


def closing_words(recipe: Recipe, run_dir: Path, summary: dict[str, Any]) -> str:
    """Several lines; the commands among them can be given as they stand, but for words in capitals.

    Args:
        recipe: of the run.
        run_dir: its folder.
        summary: what its summary.json holds.
    """
    took = timedelta(seconds=round(summary["seconds"]))
    loss = f"loss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}, ln K {summary['ln_k']:.2f}"
    run = shlex.quote(str(run_dir))
    probe, validated_on = "probe", "TRAIN VALIDATION "
    if recipe.data.kind == "digits":
        probe, validated_on = "probe_digits", ""
    elif recipe.data.kind == "class_folders" and recipe.data.path is not None:
        validated_on = f"{shlex.quote(recipe.data.path)} VALIDATION "
    return "\n".join(
        [
            f"done in {took}: {run_dir}, {summary['steps']:,} steps, {loss}",
            "Next:",
            f"  swav-tf features --model {run} -o {shlex.quote(str(run_dir / 'train.npz'))}",
            f"  swav-tf probe {validated_on}--model {run} -c {probe}",
            f"  swav-tf export {run} -o {shlex.quote(str(run_dir / 'exported'))}",
        ]
    )
