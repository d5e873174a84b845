"""The folder of one run: its lock, recipe, metrics and summary.

config.yaml   the complete recipe         metrics.jsonl   one JSON object per line
checkpoints/  see checkpoint.py           summary.json    the final figures
tensorboard/  event files                 bad_images.txt  images that could not be read
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swav_tf.plumbing.errors import RecipeError, UsageError
from swav_tf.plumbing.files import atomic_write, locked_folder
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import printable
from swav_tf.plumbing.values import nested_diff
from swav_tf.recipe.files import AnyRecipe, load_any_recipe, save_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import Checkpoint, CheckpointStore

# Settings that may change when a run resumes, so that it can move to another machine. The batch and the order of
# the images cannot.
FREE_TO_CHANGE = (
    "data.path",
    "data.kind",  # a folder may become its shards: number and names of the images are compared
    "data.labels",  # classifiers compare the labels
    "data.threads",
    "data.processes",
    "data.prefetch_batches",
    "data.max_bad_share",
    "data.validation_path",
    "data.validation_split",
    "train.accumulation_steps",
    "train.strategy",
    "train.logical_cpus",
    "train.deterministic",
    "train.max_non_finite_steps",
    "train.worker_timeout_seconds",
    "checkpoint",
    "monitor",
    "subset",  # the names in the file are compared, not its path
)
FREEZE = ("prototypes_frozen_steps", "prototypes_frozen_epochs")  # two forms of one setting
# These too if a run gets more epochs: the rates of its remaining steps follow the longer schedule.
FREE_WITH_MORE_EPOCHS = (
    "train.epochs",
    "optimizer.warmup_epochs",
    "optimizer.decay_epochs",
    "optimizer.decay",
)


ATTEMPTS = "attempts.json"  # collapsed attempts of the run in a folder; they are in its previous-N/
# What people keep next to a run: scripts, logs, notes and recipes. A run has files with such names, too.
JOB_FILES = (".err", ".json", ".log", ".md", ".out", ".sbatch", ".sh", ".txt", ".yaml", ".yml")
OWN_FILES = (
    "config.yaml",
    "summary.json",
    "model.json",
    "started_from.json",
    "tracked.json",
    "bad_images*.txt",
)


class RunFolder:
    """The folder of a run, locked while used as a context manager by the process that writes it.

    Only the chief (`writer`) changes anything.

    Raises:
        UsageError: another process is writing this folder, its file system has no locks, or it contains other files
            than a run's.
    """

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path, self.writer = path, writer
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.metrics = path / "metrics.jsonl"
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        if self.writer:
            self._refuse_other_files()
            self._lock.enter_context(locked_folder(self.path))
            for leftover in self.path.glob(".part-????????-*"):  # of a killed process
                with contextlib.suppress(OSError):
                    leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _refuse_other_files(self) -> None:
        """Refuse a folder of images or anything else: a run writes and moves files in its folder."""
        if not self.path.is_dir() or (self.path / "config.yaml").exists() or self.checkpoints.exists():
            return
        others = sorted(
            path.name
            for path in self.path.iterdir()
            if not path.name.startswith((".", "previous-")) and path.suffix not in JOB_FILES
        )
        if others:
            raise UsageError(
                f"--run-dir must be a new or empty folder, or contain a run. Received: {self.path}, which contains "
                f"{', '.join(map(printable, others[:3]))}{' and more' if len(others) > 3 else ''}. Set another folder, "
                f"such as {self.path / 'run'}."
            )

    def begin(self, recipe: AnyRecipe, *, fresh: bool = False) -> None:
        """Check that the run in the folder, if any, has these settings, or set it aside.

        They are compared with the newest checkpoint, which has a checksum; without one, with config.yaml. With
        `fresh` the run in the folder is first moved into `previous-N/`.

        Raises:
            UsageError: the folder contains a run of another kind or with other settings; all of them are listed.
        """
        path, kind = self.path / "config.yaml", recipe.kind
        try:
            saved = load_any_recipe(path) if path.exists() else None
        except RecipeError as error:
            if not fresh:
                remedy = "Remove this file: the run then resumes by its checkpoints. Or use --fresh."
                raise UsageError(f"{error}\n{remedy}") from error
            saved = None
        if saved is not None and saved.kind != kind:
            raise UsageError(
                f"--run-dir must be a new folder or contain a {kind} run. Received: {self.path}, which contains a "
                f"{saved.kind} run. Set another --run-dir."
            )
        # A run whose config.yaml is gone resumes from its checkpoints all the same.
        if fresh and (path.exists() or (self.path / ATTEMPTS).exists() or self.checkpoints.exists()):
            self.set_aside(attempts=True)
            saved = None
        newest = CheckpointStore(self.checkpoints, kind=kind).newest_facts()
        if newest is not None and "recipe" in newest[1]:
            images = _images(newest[1])
            _check_settings(newest[1]["recipe"], recipe, source=newest[0], images=images)
            before = None if saved is None else saved.model_dump(mode="json")
            if self.writer and before is not None and (changed := changes(before, recipe, images=images)):
                text = "%s was edited or damaged. It is rewritten to match the run's checkpoints and this command:\n%s"
                log.warning(text, path, "\n".join(changed))
        # Before its first checkpoint a run has nothing that other settings could spoil.
        elif saved is not None and self.checkpoints.is_dir():
            _check_settings(saved.model_dump(mode="json"), recipe, source=path)

    def start(self, recipe: AnyRecipe, *, step: int, at_end: bool) -> None:
        """Write config.yaml, and remove what the run will write again from this step on: all checks have passed."""
        if self.writer:
            save_recipe(recipe, self.path / "config.yaml")
            self.keep_metrics_until(step)
            if not at_end:
                (self.path / "summary.json").unlink(missing_ok=True)

    def keep_metrics_until(self, step: int) -> None:
        """Remove the lines of metrics.jsonl that a resumed run will write again; from step 0 it writes all."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):  # a killed run may have left half a line
                if step and json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with atomic_write(self.metrics) as partial:
            partial.write_text("".join(kept))

    def read_summary(self) -> dict[str, Any] | None:
        """Return the content of summary.json, None if the run has not ended."""
        path = self.path / "summary.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        if self.writer:
            with atomic_write(self.path / "summary.json") as partial:
                partial.write_text(json.dumps(summary, indent=1) + "\n")

    def set_aside(self, *, attempts: bool) -> None:
        """Move the run in the folder into `previous-N/`, and with `attempts` also the record of those before it."""
        numbers = [int(p.name[9:]) for p in self.path.glob("previous-*") if p.name[9:].isdigit()]
        target = self.path / f"previous-{1 + max(numbers, default=0)}"
        target.mkdir()
        own = (*OWN_FILES, ATTEMPTS) if attempts else OWN_FILES
        earlier = [
            path
            for path in self.path.iterdir()
            if any(path.match(name) for name in own)
            or not (path.name.startswith(("previous-", ".lock")) or path.suffix in JOB_FILES)
        ]
        # The recipe goes last: if this is interrupted, the remaining files still form a recognizable run.
        for path in sorted(earlier, key=lambda p: p.name == "config.yaml"):
            path.rename(target / path.name)
        log.info("The earlier run was moved to %s.", target)


def changes(
    before: Mapping[str, Any], recipe: AnyRecipe, *, free: bool = False, images: int | None = None
) -> list[str]:
    """Return one line per setting that changed: settings that must not change, or those that are `free` to.

    With the number of `images`, the same freeze in epochs instead of steps is not a change.
    """
    # Settings that an earlier version did not know had their defaults.
    with contextlib.suppress(ValidationError):
        known = type(recipe).model_validate_json(json.dumps(before))
        before = known.model_dump(mode="json")
        if isinstance(known, Recipe) and isinstance(recipe, Recipe) and images is not None:
            steps = images // recipe.train.batch_size
            if known.frozen_steps(steps) == recipe.frozen_steps(steps):
                method = recipe.method.model_dump(include=set(FREEZE))
                before = {**before, "method": {**before["method"], **method}}
    longer = recipe.train.epochs > before["train"]["epochs"]
    allowed = FREE_TO_CHANGE + (FREE_WITH_MORE_EPOCHS if longer else ())
    return [
        f"  {key}: was {old!r}, now {new!r}"
        for key, (old, new) in nested_diff(before, recipe.model_dump(mode="json")).items()
        if any(key == name or key.startswith(f"{name}.") for name in allowed) == free
    ]


def read_checkpoint(run_dir: Path, recipe: AnyRecipe, *, step: int | None = None) -> Checkpoint:
    """Read the newest checkpoint of a run, or that of a step, and compare its recipe with that in config.yaml.

    Raises:
        UsageError: no such checkpoint, or config.yaml has settings that must not change; all of them are listed.
        CheckpointError: it is damaged. An older one would pass for the newest.
    """
    store = CheckpointStore(run_dir / "checkpoints", kind=recipe.kind)
    if step is not None and step not in store.steps():
        raise UsageError(f"{run_dir} has checkpoints of steps {store.steps()}. Received: step {step}.")
    checkpoint = store.latest() if step is None else store.read(step)
    if checkpoint is None:
        raise UsageError(f"{run_dir} has no checkpoint yet. Create one with `swav-tf {recipe.kind}`.")
    # Imports by earlier versions contain no recipe.
    facts, images = checkpoint.facts, _images(checkpoint.facts)
    if "recipe" in facts and (changed := changes(facts["recipe"], recipe, images=images)):
        raise UsageError(
            f"{run_dir}/config.yaml must contain the recipe that the run was trained with. It was edited or damaged, "
            f"and differs from {checkpoint.path}:\n"
            + "\n".join(changed)
            + "\nRestore these values, or repeat the training command."
        )
    return checkpoint


def best_step(run_dir: Path) -> int:
    """Return the step of the best epoch's checkpoint in a probe or fine-tuning run.

    Raises:
        UsageError: there is no such run, it has no epochs, or its version did not keep that checkpoint.
        CheckpointError: the newest checkpoint is damaged.
    """
    config = run_dir / "config.yaml"
    store = CheckpointStore(
        run_dir / "checkpoints", kind=load_any_recipe(config).kind if config.exists() else ""
    )
    best = _validated(store).get("best")
    if best is None:
        raise UsageError(
            "--best is for runs of `swav-tf finetune` and of `swav-tf probe` by SGD, which are validated after epochs. "
            f"Received: {run_dir}, which has no validated epoch. Omit --best."
        )
    if best.get("step") not in store.steps():
        raise UsageError(
            f"--best needs the checkpoint of the best epoch, {best['epoch']}, and {run_dir} does not contain it: "
            "earlier versions kept only the last ones. Omit --best, or train again."
        )
    return int(best["step"])


def epoch_in_words(run_dir: Path, recipe: AnyRecipe, *, best: bool, step: int | None = None) -> str:
    """Say whose weights a checkpoint contains: `last epoch (30)`, `best epoch (21)`; empty without validated epochs.

    The checkpoint is the best epoch's, that of `step`, or the newest.
    """
    store = CheckpointStore(run_dir / "checkpoints", kind=recipe.kind)
    validated = _validated(store)
    if not validated:
        return ""
    newest = store.steps()[-1]
    step = newest if step is None else step
    for name in ("best",) if best else ("last", "best"):
        figures = validated.get(name)
        if figures is not None and (best or figures.get("step", newest) == step):
            return f"{name} epoch ({figures['epoch']})"
    return f"step {step}"


def _validated(store: CheckpointStore) -> dict[str, Any]:
    """Return the figures of the last and the best validation, empty without one."""
    steps = store.steps()
    position = store.facts(steps[-1]).get("position", {}) if steps else {}
    return dict(position.get("validation", {}))


def _images(facts: Mapping[str, Any]) -> int | None:
    """Return the number of images of the run that a checkpoint belongs to; None for an import."""
    count: int | None = facts.get("images", {}).get("images")
    return count


def _check_settings(
    before: Mapping[str, Any], recipe: AnyRecipe, *, source: Path, images: int | None = None
) -> None:
    if changed := changes(before, recipe, images=images):
        raise UsageError(
            f"A run resumes only with the settings it was started with. {source} differs:\n"
            + "\n".join(changed)
            + "\nRestore these values, or use another --run-dir or --fresh (the old run is kept)."
        )
