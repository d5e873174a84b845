"""Checkpoints: atomic, checksummed, named by step.

A checkpoint is a folder `step-000001234` with `state.safetensors` (arrays) and `state.json` (everything else, the
SHA-256 of the arrays and its own). It is written under a temporary name, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.files import file_sha256, sync_to_disk

ARRAYS, FACTS = "state.safetensors", "state.json"
FORMAT = 2
FORMAT_WITHOUT_FACTS_SHA256 = 1
IMPORTED = "imported"  # the fact of a checkpoint made by an import: where its weights come from

# Reading a damaged file raises one of these.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)


class CheckpointError(SwavError):
    """Report a checkpoint that is damaged, unwritable, or of the wrong kind."""


@dataclass(frozen=True)
class Checkpoint:
    """The state saved after `step` optimizer steps."""

    step: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    path: Path


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: created by the first write.
        kind: "pretrain", "probe" or "finetune"; checkpoints of another kind are never loaded.
        keep_last: number of newest checkpoints to keep; those written with `keep=True` are kept for good.
    """

    def __init__(self, folder: Path, *, kind: str, keep_last: int = 3) -> None:
        self.folder, self.kind, self.keep_last = folder, kind, keep_last

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the folder of one checkpoint."""
        return self.folder / f"step-{step:09d}"

    def write(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        *,
        keep: bool = False,
        best: int | None = None,
    ) -> Path:
        """Write a checkpoint, remove those no longer kept, and return the new one's folder.

        With `keep` it is never removed. `best` is the step of a checkpoint that stays until another one is better.

        Raises:
            CheckpointError: the disk is full or read-only; earlier checkpoints are untouched.
        """
        final = self.path(step)
        part = self.folder / f".part-{step:09d}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part / ARRAYS)
            header = {"format": FORMAT, "kind": self.kind, "step": step, "keep": keep}
            complete = {**header, "sha256": file_sha256(part / ARRAYS), **facts}
            complete["facts_sha256"] = sha256_of_facts(complete)
            (part / FACTS).write_text(json.dumps(complete, indent=1))
            for path in (part / ARRAYS, part / FACTS, part):
                sync_to_disk(path)
            self._remove(final)
            part.rename(final)
            sync_to_disk(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.folder}: {error}. "
                "Free some space or set another --run-dir; earlier checkpoints are untouched."
            ) from error
        self._prune(step, best)
        return final

    def read(self, step: int) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            CheckpointError: it is missing, damaged, or of another kind.
        """
        path, facts = self.path(step), self.facts(step)
        try:
            if file_sha256(path / ARRAYS) != facts["sha256"]:
                raise CheckpointError(f"{path} is damaged: {ARRAYS} does not match its checksum.")
            return Checkpoint(step=step, arrays=load_file(path / ARRAYS), facts=facts, path=path)
        except _DAMAGE as error:
            raise CheckpointError(f"{path} is damaged: {error!r}.") from error

    def facts(self, step: int) -> dict[str, Any]:
        """Read and verify the facts of one checkpoint, as `read` does, without its arrays."""
        path = self.path(step)
        try:
            facts: dict[str, Any] = json.loads((path / FACTS).read_text())
            checksum = facts.pop("facts_sha256", None)
            old = facts["format"] == FORMAT_WITHOUT_FACTS_SHA256
            if not (old or facts["format"] == FORMAT) or facts["kind"] != self.kind or facts["step"] != step:
                raise CheckpointError(
                    f"{path} must be a {self.kind} checkpoint of step {step}, format {FORMAT} or less. Received: "
                    f"{facts['kind']}, step {facts['step']}, format {facts['format']}."
                )
            if checksum != (None if old else sha256_of_facts(facts)):
                raise CheckpointError(f"{path} is damaged: {FACTS} does not match its checksum.")
            return facts
        except _DAMAGE as error:
            raise CheckpointError(f"{path} is damaged: {error!r}.") from error

    def newest_facts(self) -> tuple[Path, dict[str, Any]] | None:
        """Return folder and facts of the newest checkpoint whose facts are intact, None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):
                return self.path(step), self.facts(step)
        return None

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint, if any, and what is wrong with those after it.

        Raises:
            CheckpointError: checkpoints exist and all are damaged.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.read(step), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            remedy = "Start over with --fresh (the old files are kept), or restore one from a backup."
            raise CheckpointError("\n  ".join(["No checkpoint is intact:", *problems]) + f"\n{remedy}")
        return None, []

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, never an older one in its place; None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        checkpoint, problems = self.newest()
        if checkpoint is not None and problems:
            remedy = (
                f"The newest intact checkpoint is of step {checkpoint.step}. To use it, move the damaged ones away; "
                "training that resumes in this folder uses it automatically."
            )
            raise CheckpointError("\n".join([*problems, remedy]))
        return checkpoint

    def _remove(self, path: Path) -> None:
        # Rename first: a kill during the removal must not leave half a checkpoint under its own name.
        doomed = self.folder / f".part-removed-{path.name}-{os.getpid()}"
        with contextlib.suppress(OSError):
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _prune(self, newest: int, best: int | None) -> None:
        # Checkpoints after `newest` are damaged ones that the run could not resume from: they do not count.
        for step in [step for step in self.steps() if step <= newest][: -self.keep_last]:
            path = self.path(step)
            try:
                keep = json.loads((path / FACTS).read_text()).get("keep", False)
            except (OSError, ValueError):
                keep = True  # damaged: leave it for the user to look at
            if not keep and step != best:
                self._remove(path)
        for leftover in self.folder.glob(".part-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256_of_facts(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of facts as JSON, independent of its layout."""
    as_json = json.loads(json.dumps(facts))
    return hashlib.sha256(json.dumps(as_json, sort_keys=True).encode()).hexdigest()
