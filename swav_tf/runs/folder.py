"""The folder of one run: who may write it, its recipe, its metrics, its summary. No TensorFlow.

config.yaml   the recipe, resolved        metrics.jsonl   one JSON object a line
checkpoints/  see checkpoint.py           summary.json    the figures at the end
tensorboard/  event files                 bad_images.txt  images that could not be read
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pydantic import ValidationError

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write, take_lock
from swav_tf.recipe.files import AnyRecipe, kind_of, load_any_recipe, save_recipe
from swav_tf.runs.checkpoint import Checkpoint, CheckpointStore

# Settings that may differ when a run goes on, so that it can move to another machine: the batch and the
# order of the images stay as they are.
FREE_TO_CHANGE = (
    "data.path",
    "data.kind",  # a folder may become its shards: number and names of the images are compared
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
    "subset",  # the names in it are compared, not where the file lies
)


class RunFolder:
    """Opens the folder for one process; only the chief's (`writer`) makes or changes anything.

    Use it as a context manager: the lock is held until the end, and the system lets go of it
    when the process dies.

    Raises:
        UsageError: a live process writes this folder, its file system has no locks, or it holds another recipe's run.
    """

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path = path
        self.writer = writer
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.metrics = path / "metrics.jsonl"
        self._lock: TextIO | None = None

    def __enter__(self) -> RunFolder:
        if self.writer:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = (self.path / ".lock").open("a+")
            except OSError as error:
                raise UsageError(
                    f"--run-dir must be a folder that can be written. Received: {self.path} ({error})."
                ) from error
            with contextlib.ExitStack() as unless_held:
                unless_held.enter_context(lock)
                if not take_lock(lock, self.path):
                    lock.seek(0)
                    owner = lock.read().strip() or "unknown"
                    raise UsageError(
                        f"Only one process may write a run folder, and one (process {owner}) writes {self.path} now. "
                        "Wait for it, stop it, or set another --run-dir."
                    )
                unless_held.pop_all()
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            self._lock = lock
            for left in self.path.glob(".part-????????-*"):  # what a killed process had not finished
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def set_aside(self) -> Path | None:
        """Moves an earlier run into `previous-N/` below; returns that folder, or None if there was no run."""
        if not (self.path / "config.yaml").exists():
            return None
        numbers = [int(p.name[9:]) for p in self.path.glob("previous-*") if p.name[9:].isdigit()]
        target = self.path / f"previous-{1 + max(numbers, default=0)}"
        target.mkdir()
        earlier = [p for p in self.path.iterdir() if p.name != ".lock" and not p.name.startswith("previous-")]
        # The recipe last: as long as it stands, what is left is that run's, should this be interrupted.
        for path in sorted(earlier, key=lambda p: p.name == "config.yaml"):
            path.rename(target / path.name)
        return target

    def check_kind(self, recipe: AnyRecipe) -> None:
        """Refuses the folder of another kind of run.

        Raises:
            UsageError: it is one.
        """
        path = self.path / "config.yaml"
        if path.exists() and (earlier := kind_of(load_any_recipe(path))) != kind_of(recipe):
            raise UsageError(
                f"A run folder holds runs of one kind. {self.path} holds a {earlier} run; a {kind_of(recipe)} "
                "run neither goes on from it nor takes its place. Set another --run-dir."
            )

    def save_recipe(self, recipe: AnyRecipe) -> str | None:
        """Writes config.yaml, if the run that is in the folder has these settings.

        The newest checkpoint tells them, which has a checksum; config.yaml where there is none that does.

        Returns:
            How config.yaml differed from the checkpoint, in words: it was edited or damaged. None: it did not.

        Raises:
            UsageError: the folder holds a run of another kind, or one that was started with other
                settings; all of them are listed.
        """
        path = self.path / "config.yaml"
        copy = mended = None
        if path.exists():
            self.check_kind(recipe)
            copy = load_any_recipe(path)
        newest = CheckpointStore(self.checkpoints, kind=kind_of(recipe)).newest_facts()
        if newest is not None and "recipe" in newest[1]:
            check_settings(newest[1]["recipe"], recipe, of=newest[0])
            if copy is not None and (differences := changes(copy.model_dump(mode="json"), recipe)):
                mended = (
                    f"{path} was edited or damaged. It is written anew as the run's checkpoints, and this command, "
                    "have it:\n" + "\n".join(differences)
                )
        # Before its first checkpoint a run has learnt nothing that other settings could spoil.
        elif copy is not None and self.checkpoints.is_dir():
            check_settings(copy.model_dump(mode="json"), recipe, of=path)
        if self.writer:
            save_recipe(recipe, path)
        return mended

    def keep_metrics_until(self, step: int) -> None:
        """Drops the lines of metrics.jsonl that a resumed run will write again."""
        if not self.writer or not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the last line of a killed run may be cut
        with atomic_write(self.metrics) as partial:
            partial.write_text("".join(kept))

    def read_summary(self) -> dict[str, Any] | None:
        """What summary.json holds, or None if the run has not ended."""
        path = self.path / "summary.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, whole or not at all."""
        if self.writer:
            with atomic_write(self.path / "summary.json") as partial:
                partial.write_text(json.dumps(summary, indent=1) + "\n")


def check_settings(before: Mapping[str, Any], recipe: AnyRecipe, *, of: Path) -> None:
    """Holds a run's settings against those that it was started with.

    Raises:
        UsageError: they differ in more than what is free to change; all differences are listed.
    """
    if differences := changes(before, recipe):
        raise UsageError(
            f"A run goes on only with the settings it was started with. {of} differs:\n"
            + "\n".join(differences)
            + "\nGive the old values, another --run-dir, or --fresh (the old run is kept aside)."
        )


def check_copy(path: Path, recipe: AnyRecipe, checkpoint: Checkpoint) -> None:
    """Holds config.yaml, which has no checksum, against the recipe in a checkpoint, which has one.

    Args:
        path: of config.yaml.
        recipe: what it says.
        checkpoint: of the same run; that of an import by an earlier version has no recipe.

    Raises:
        UsageError: they differ in more than what is free to change; all differences are listed.
    """
    if "recipe" in checkpoint.facts and (differences := changes(checkpoint.facts["recipe"], recipe)):
        raise UsageError(
            f"{path} must be the recipe that the run was trained by. It was edited or damaged, and differs from "
            f"{checkpoint.path}:\n"
            + "\n".join(differences)
            + "\nPut the old values back, or give the command that trained the run once more: it does so."
        )


def changes(before: Mapping[str, Any], recipe: AnyRecipe, *, free: bool = False) -> list[str]:
    """What a recipe has other than it was before, a line a setting: of what must stay, or of what is free to change."""
    # What an earlier version did not know yet was as it is by default.
    with contextlib.suppress(ValidationError):
        before = type(recipe).model_validate_json(json.dumps(before)).model_dump(mode="json")
    old, new = _flat(before), _flat(recipe.model_dump(mode="json"))
    return [
        f"  {key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and _is_free(key) == free
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()
        }
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{prefix}.{i}").items()}
    return {prefix: value}


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)
