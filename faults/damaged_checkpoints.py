"""Checkpoints cut off or with flipped bits: never loaded, and a run goes on from the one before to the same end."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faults.commands import Commands
from faults.isolated import isolated
from faults.jobs import features, pretrain
from faults.kills import undisturbed
from faults.mutate import mutated
from faults.outcomes import differences
from faults.trial import Plan, Trial, shortened
from swav_tf.runs.checkpoint import ARRAYS, FACTS, CheckpointError, CheckpointStore

EVERY = 50  # trials that only read, for one that runs


def run(plan: Plan) -> Iterator[Trial]:
    """Every so often a whole run with damage in its checkpoints; the others read one."""
    runs = [number for number in plan.numbers if number % EVERY == 0]
    yield from _read(plan, [number for number in plan.numbers if number % EVERY])
    if runs:
        yield from _runs(plan, runs)


def _read(plan: Plan, numbers: list[int]) -> Iterator[Trial]:
    whole = plan.folder / "whole"
    draw = np.random.default_rng(5)
    arrays = {f"backbone/{n}/kernel": draw.normal(size=(3, 3, 8, 8)).astype(np.float32) for n in range(4)}
    arrays["optimizer/iterations"] = np.array([44], np.int64)
    facts = {
        "position": {"step": 44, "sums": {"loss": 12.25, "gradient_norm": 0.125}, "usage": [3, 4, 0, 9]},
        "recipe": {"name": "x", "train": {"epochs": 2, "batch_size": 64}},
        "images": {"images": 1437, "names_sha256": "0" * 64},
        "replicas": 1,
    }
    store = CheckpointStore(whole, kind="pretrain")
    store.write(44, arrays, facts)
    right = store.read(44)

    def made(number: int) -> tuple[str, str, bytes]:
        one = plan.draw(number)
        name = (ARRAYS, FACTS)[int(one.integers(2))]
        data, how = mutated((store.path(44) / name).read_bytes(), one)
        return name, how, data

    def outcome(number: int) -> tuple[str, str]:
        name, _, data = made(number)
        copy = plan.folder / f"copy-{number}"
        shutil.copytree(whole, copy)
        (copy / store.path(44).name / name).write_bytes(data)
        try:
            got = CheckpointStore(copy, kind="pretrain").read(44)
        except CheckpointError:
            return "refused in words", ""
        finally:
            shutil.rmtree(copy)
        same = got.facts == right.facts and all(
            np.array_equal(got.arrays[key], value) for key, value in right.arrays.items()
        )
        return ("the same state", "") if same else ("", f"is loaded with another state: {got.facts}")

    for answer in isolated(outcome, numbers):
        name, how, _ = made(answer.argument)
        told, wrong = answer.value or ("", "")
        wrong = answer.broken or wrong
        finding = f"{name}, {how}: {shortened(wrong)}" if wrong else ""
        yield Trial(answer.argument, "damaged checkpoint read", told or "broken", finding=finding)


def _runs(plan: Plan, numbers: list[int]) -> Iterator[Trial]:
    """A run is broken off, its newest checkpoints are damaged, and it goes on; or none is whole."""
    commands = Commands(plan.folder)
    job = pretrain(settings=("checkpoint.keep_last=5",))
    course = undisturbed(commands, job, plan.folder / "undisturbed")
    started = plan.folder / "started"
    started.mkdir()
    store = functools.partial(CheckpointStore, kind="pretrain")
    running = commands.start(job.arguments(started))
    while len(store(started / "run" / "checkpoints").steps()) < 4 and not running.has_ended():
        pass
    running.kill()
    running.wait()
    for number in numbers:
        draw, folder = plan.draw(number), plan.folder / f"run-{number}"
        shutil.copytree(started, folder)
        steps = store(folder / "run" / "checkpoints").steps()
        bad = len(steps) if (number // EVERY) % 4 == 3 else int(draw.integers(1, len(steps)))
        for step in steps[-bad:]:
            path = store(folder / "run" / "checkpoints").path(step) / (ARRAYS, FACTS)[int(draw.integers(2))]
            _damage(path, draw)
        what = "run with damaged checkpoints"
        asked = commands.run(features(folder / "run", ".npz").arguments(folder))
        finding = asked.disgrace or ("" if asked.code == 1 else f"features of another checkpoint: {asked}")
        ended = commands.run(job.arguments(folder))
        finding = finding or ended.disgrace
        if not finding and bad == len(steps):
            told = "none whole: refused in words"
            finding = "" if ended.code == 1 and "No checkpoint is whole" in ended.stderr else str(ended)
        elif not finding:
            told = "told, gone on, the same bits"
            finding = str(ended) if ended.code or "is damaged" not in ended.stderr else ""
            result = {} if finding else job.result(folder)
            result["complaints"] = []  # what is damaged stays for whoever wants to know why
            finding = finding or differences(course.result, result)
        yield Trial(number, what, told if not finding else "broken", bad, shortened(finding))
        shutil.rmtree(folder)


def _damage(path: Path, draw: np.random.Generator) -> None:
    """So that what it says is no longer the same: not only the layout of JSON."""
    data = path.read_bytes()
    start = int(draw.integers(len(data) // 4, len(data) // 2))
    if draw.random() < 0.5:
        path.write_bytes(data[:start])
    else:
        path.write_bytes(data[:start] + bytes([data[start] ^ 0x80]) + data[start + 1 :])
