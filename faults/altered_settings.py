"""config.yaml and model.json of a run, altered so that they can still be read: refused, or the same outputs."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from evaluate.backends.keras_backend import KerasBackend
from faults.commands import Commands
from faults.isolated import isolated
from faults.jobs import classifier, pretrain
from faults.kills import undisturbed
from faults.mutate import mutated
from faults.mutated_recipes import ODD_VALUES, put, some_path
from faults.outcomes import differences
from faults.trial import Plan, Trial, shortened
from swav_tf.plumbing.errors import SwavError

EVERY = 25  # trials that only read, for one that goes on with a run
RECIPE, FACTS = "config.yaml", "model.json"


def run(plan: Plan) -> Iterator[Trial]:
    """Runs of every kind are read; every so often one is gone on with."""
    commands = Commands(plan.folder)
    yield from _read(plan, commands, [number for number in plan.numbers if number % EVERY])
    if resumed := [number for number in plan.numbers if number % EVERY == 0]:
        yield from _resumed(plan, commands, resumed)


def _read(plan: Plan, commands: Commands, numbers: list[int]) -> Iterator[Trial]:
    whole = plan.folder / "whole"
    whole.mkdir()
    commands.must_run(pretrain().arguments(whole))
    trained = whole / "run"
    for name, cached in (("probed", False), ("probed by cache", True)):
        commands.must_run(classifier("probe", trained, cached=cached).arguments(whole / name))
    commands.must_run(["weights", "import", trained, "--to", whole / "imported" / "run"])
    places = (
        ("run", RECIPE), ("imported/run", RECIPE), ("probed/run", RECIPE), ("probed/run", FACTS),
        ("probed by cache/run", RECIPE), ("probed by cache/run", FACTS),
    )  # fmt: skip

    def outcome(number: int) -> tuple[str, str]:
        name, file = places[number % len(places)]
        data, _ = altered((whole / name / file).read_bytes(), plan.draw(number))
        copy = plan.folder / f"altered-{number}"
        shutil.copytree(whole / name, copy)
        (copy / file).write_bytes(data)
        says = _classifier_says if "probed" in name else _runner_says
        try:
            got = says(copy)
        except SwavError:
            return "refused in words", ""
        finally:
            shutil.rmtree(copy)
        different = differences(_right(says, whole / name), got)
        return "the same outputs", f"{name} is read to another model: {different}" if different else ""

    for answer in isolated(outcome, numbers, limit_s=60):
        name, file = places[answer.argument % len(places)]
        told, wrong = answer.value or ("", "")
        wrong = answer.broken or wrong
        _, how = altered((whole / name / file).read_bytes(), plan.draw(answer.argument))
        finding = f"{name}/{file}, {how}: {shortened(wrong)}" if wrong else ""
        yield Trial(answer.argument, f"altered {file}, read", "broken" if finding else told, finding=finding)


def _resumed(plan: Plan, commands: Commands, numbers: list[int]) -> Iterator[Trial]:
    """A run was broken off and its config.yaml altered; the command is given again."""
    job = pretrain()
    course = undisturbed(commands, job, plan.folder / "undisturbed")
    started = plan.folder / "started"
    started.mkdir()
    running = commands.start(job.arguments(started))
    while not any((started / "run" / "checkpoints").glob("step-*")) and not running.has_ended():
        pass
    running.kill()
    running.wait()
    for number in numbers:
        folder = plan.folder / f"run-{number}"
        shutil.copytree(started, folder)
        path = folder / "run" / RECIPE
        data, how = altered(path.read_bytes(), plan.draw(number))
        path.write_bytes(data)
        ended = commands.run(job.arguments(folder))
        finding, told = ended.disgrace, "refused in words"
        if not finding and ended.code == 0:
            told = "gone on, the same bits"
            finding = differences(course.result, job.result(folder))
        finding = f"{how}: {shortened(finding)}" if finding else ""
        told = "broken" if finding else told
        yield Trial(number, f"altered {RECIPE}, run gone on with", told, finding=finding)
        shutil.rmtree(folder)


def altered(data: bytes, draw: np.random.Generator) -> tuple[bytes, str]:
    """Other bytes, or another value at one place; and how."""
    if draw.random() < 0.3:
        return mutated(data, draw)
    # JSON is YAML, but for 1e-05, which YAML takes for a text.
    load = json.loads if data.startswith(b"{") else YAML(typ="safe").load
    while True:
        values = load(data)
        path = some_path(values, draw)
        old = functools.reduce(lambda place, key: place[key], path, values)
        near = _near(old)
        value = (near or ODD_VALUES)[int(draw.integers(len(near or ODD_VALUES)))]
        put(values, path, value)
        text = json.dumps(values, indent=1)
        if value != old and not any(word in text for word in ("NaN", "Infinity", "\\ud8")):
            return text.encode(), f"{'.'.join(map(str, path))} = {str(value)[:40]!r}, was {str(old)[:40]!r}"


def _near(value: Any) -> tuple[Any, ...]:
    """Values that readers are likely to take in its place."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1, 2 * value, 0)
    if isinstance(value, float):
        return (1.1 * value, 0.5 * value, -value, 0.0)
    if isinstance(value, str):
        return (value + "x", value[1:], "train", "float32", "digits", "resnet18_32px")
    if isinstance(value, list) and value:
        return (value[::-1], value[1:], [*value, value[0]])
    return ()


# === What a run says of images ===


def _images(side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (4, side, side, 3), dtype=np.uint8)


def _runner_says(run: Path) -> dict[str, Any]:
    """Outputs of a pretraining run, and what commands take from it beside them."""
    runner = KerasBackend(run)
    outputs = {name: found.tolist() for name, found in runner.run(_images(runner.input_view.crop)).items()}
    facts = {name: fact for name, fact in runner.facts.as_dict().items() if name != "path"}
    return {**outputs, "view": runner.input_view, "facts": facts}


def _classifier_says(run: Path) -> dict[str, Any]:
    """Likewise of a probe."""
    from swav_tf.training.classifier_folder import load_classifier

    model, recipe, facts = load_classifier(run)
    view = recipe.data.evaluation
    logits = model.classifier(model.features(_images(view.crop))).numpy().tolist()
    return {
        "logits": logits,
        "view": view,
        "classes": facts.class_names,
        "how": facts.how,
        "name": recipe.name,
    }


@functools.cache
def _right(says: Callable[[Path], dict[str, Any]], run: Path) -> dict[str, Any]:
    return says(run)
