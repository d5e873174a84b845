"""The weights that a pretraining run begins with, where they are not random, and the record of it."""

from __future__ import annotations

import json
from pathlib import Path

from swav_tf.errors import UsageError
from swav_tf.method.swav import SwAV
from swav_tf.training.load import parts_of, read_pretrained
from swav_tf.training.run_folder import RunFolder
from swav_tf.training.state import misfits, named_variables
from swav_tf.whole_file import whole_file

RECORD = "started_from.json"


def start_with(model: SwAV, source: Path | str | None, folder: RunFolder, *, resumed: bool) -> str | None:
    """Puts the weights of another run (or an import) into a model before its first step.

    The schedule, the optimiser and the queue begin anew. A run that is gone on with has them already:
    then it is only checked that these are the weights it began with.

    Args:
        model: a new one, or one that was restored from a checkpoint of `folder`.
        source: run folder that the weights are in; None: the model keeps those it has.
        folder: of this run; it gets a record of the source.
        resumed: the model was restored.

    Returns:
        What was done, in words; None: nothing.

    Raises:
        UsageError: the weights do not fit the recipe's model, all that does not is listed; or the run
            that is gone on with began with others.
        CheckpointError: the source's checkpoint is damaged.
    """
    record = folder.path / RECORD
    if source is None:
        if folder.writer and not resumed:
            record.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        return None
    checkpoint, recipe = read_pretrained(source)
    facts = {
        "run": str(source),
        "recipe": recipe.name,
        "step": checkpoint.step,
        "sha256": checkpoint.facts["sha256"],
    }
    if resumed:
        before = json.loads(record.read_text())["sha256"] if record.exists() else None
        if before != facts["sha256"]:
            raise UsageError(
                f"A run goes on with its own weights. {folder.path} did not begin with those of {source}: leave out "
                "--weights, or give another --run-dir or --fresh."
            )
        return f"this run began with the weights of {source}"
    parts = parts_of(checkpoint)
    targets = {
        name: variable for name, variable in named_variables(model).items() if name.partition("/")[0] in parts
    }
    if wrong := misfits(targets, checkpoint.arrays):
        raise UsageError(
            f"The weights of {source} do not fit the recipe's model:\n  "
            + "\n  ".join(wrong)
            + "\nChange the recipe's model, or import the backbone alone: swav-tf weights import --backbone-only."
        )
    for name, variable in targets.items():
        variable.assign(checkpoint.arrays[name])
    if folder.writer:
        with whole_file(record) as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n")
    new = [part for part in model.parts if part not in parts]
    return f"{', '.join(parts)} of {source}" + (f"; {' and '.join(new)} are new" if new else "")
