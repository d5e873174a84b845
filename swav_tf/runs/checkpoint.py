"""Checkpoints: complete, atomic, checksummed, kept by number. No TensorFlow.

A checkpoint is a folder `step-000001234` with `state.safetensors` (arrays) and `state.json` (all
that is no array, and the SHA-256 of the arrays' file and of itself). It is written under another name, flushed
to disk and renamed, so that a folder of this name is always whole unless the disk lost it.
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
from swav_tf.plumbing.files import sync_to_disk

ARRAYS, FACTS = "state.safetensors", "state.json"
FORMAT = 2
WITHOUT_FACTS_SHA256 = 1  # the format before: its state.json had no checksum of its own
IMPORTED = "imported"  # fact of a checkpoint that no training wrote: where its weights are from

# What damaged files make of reading them.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)


class CheckpointError(SwavError):
    """A checkpoint is damaged, or is of another kind than it should be."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` optimiser steps."""

    step: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    path: Path


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: made when the first one is written.
        kind: what is saved here ("pretrain", "probe", ...); no other kind is ever loaded.
        keep_last: newest checkpoints that stay; those written with `keep=True` stay for ever.
    """

    def __init__(self, folder: Path, *, kind: str, keep_last: int = 3) -> None:
        self.folder = folder
        self.kind = kind
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / f"step-{step:09d}"

    def write(
        self, step: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], *, keep: bool = False
    ) -> Path:
        """Saves, then removes what is not kept any more. Returns the checkpoint's folder.

        Raises:
            CheckpointError: the disk is full or refuses; older checkpoints are untouched.
        """
        final = self.path(step)
        part = self.folder / f".part-{step:09d}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part / ARRAYS)
            whole = {
                "format": FORMAT,
                "kind": self.kind,
                "step": step,
                "keep": keep,
                "sha256": _sha256(part / ARRAYS),
                **facts,
            }
            whole["facts_sha256"] = sha256_of_facts(whole)
            (part / FACTS).write_text(json.dumps(whole, indent=1))
            for path in (part / ARRAYS, part / FACTS, part):
                sync_to_disk(path)
            self._remove(final)
            part.rename(final)
            sync_to_disk(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.folder}: {error}. "
                "Make room or set another --run-dir; earlier checkpoints are untouched."
            ) from error
        self._prune(step)
        return final

    def read(self, step: int) -> Checkpoint:
        """One checkpoint, verified.

        Raises:
            CheckpointError: it is missing, damaged, or of another kind.
        """
        path, facts = self.path(step), self.facts(step)
        try:
            if _sha256(path / ARRAYS) != facts["sha256"]:
                raise CheckpointError(
                    f"{path} is damaged: its checksum differs from the one it was written with."
                )
            return Checkpoint(step=step, arrays=load_file(path / ARRAYS), facts=facts, path=path)
        except UNREADABLE as error:
            raise CheckpointError(f"{path} is damaged: {error!r}.") from error

    def facts(self, step: int) -> dict[str, Any]:
        """The facts of one checkpoint, verified; its arrays are not looked at.

        Raises:
            CheckpointError: they are missing, damaged, or of another kind.
        """
        path = self.path(step)
        try:
            facts: dict[str, Any] = json.loads((path / FACTS).read_text())
            checksum = facts.pop("facts_sha256", None)
            if (
                facts["format"] not in (FORMAT, WITHOUT_FACTS_SHA256)
                or facts["kind"] != self.kind
                or facts["step"] != step
            ):
                raise CheckpointError(
                    f"{path} must be a {self.kind} checkpoint of step {step}, format {FORMAT} or less. Received: "
                    f"{facts['kind']}, step {facts['step']}, format {facts['format']}."
                )
            if checksum != (None if facts["format"] == WITHOUT_FACTS_SHA256 else sha256_of_facts(facts)):
                raise CheckpointError(
                    f"{path} is damaged: {FACTS} does not have the checksum that it was written with."
                )
            return facts
        except UNREADABLE as error:
            raise CheckpointError(f"{path} is damaged: {error!r}.") from error

    def newest_facts(self) -> tuple[Path, dict[str, Any]] | None:
        """Folder and facts of the newest checkpoint whose facts are whole; None: there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):
                return self.path(step), self.facts(step)
        return None

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with those after it.

        Raises:
            CheckpointError: there are checkpoints and none is whole.
        """
        complaints: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.read(step), complaints
            except CheckpointError as error:
                complaints.append(str(error))
        if complaints:
            raise CheckpointError(
                "No checkpoint is whole:\n  "
                + "\n  ".join(complaints)
                + "\nStart again with --fresh (the old files are kept), or restore one from a backup."
            )
        return None, []

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, for whom no older one will do; None where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        checkpoint, complaints = self.newest()
        if checkpoint is not None and complaints:
            raise CheckpointError(
                "\n".join(complaints)
                + f"\nThe newest whole checkpoint is of step {checkpoint.step}. To take that "
                "one, move away what is damaged; a training that goes on in this folder takes it by itself."
            )
        return checkpoint

    def _remove(self, path: Path) -> None:
        # Under another name first: a kill in between must not leave half a checkpoint under its own.
        aside = self.folder / f".part-removed-{path.name}-{os.getpid()}"
        with contextlib.suppress(OSError):
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _prune(self, newest: int) -> None:
        # Later ones are those that a run could not go on from: they are no reason to remove a good one.
        for step in [step for step in self.steps() if step <= newest][: -self.keep_last]:
            path = self.path(step)
            try:
                keep = json.loads((path / FACTS).read_text()).get("keep", False)
            except (OSError, ValueError):
                keep = True  # damaged: evidence, not ours to remove
            if not keep:
                self._remove(path)
        for leftover in self.folder.glob(".part-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256_of_facts(facts: Mapping[str, Any]) -> str:
    """Of what JSON makes of them, however it is laid out."""
    read_back = json.loads(json.dumps(facts))
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
