"""The suite of faults itself: that its trials repeat, find what is wrong, and are kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from cli.main import swav_tf
from faults.altered_settings import altered
from faults.disk_full import all_jobs
from faults.isolated import isolated
from faults.jobs import Made
from faults.mutate import MUTATORS, mutated
from faults.writers import Inputs
from swav_tf.recipe_files import bundled_recipes, load_any_recipe, recipe_yaml

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "faults", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Bugs caught: a kind that cannot be run any more, results that are lost, kinds that are run twice.
def test_the_cheap_kinds_find_nothing_and_are_kept(tmp_path):
    results = tmp_path / "faults.json"
    wanted = (
        "--only",
        "recipes,images,weights,checkpoints",
        "--first",
        "1",
        "--count",
        "24",
        "--json",
        results,
    )
    first = run(*wanted)
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads(results.read_text())
    assert sum(row["trials"] for row in found["recipes"]["rows"]) == 24
    assert all(row["outcomes"] for kind in found.values() for row in kind["rows"])
    second = run(*wanted)
    assert second.stdout.count("done on") == 4
    assert json.loads(results.read_text()) == found


def test_an_unknown_kind_is_refused():
    ended = run("--only", "recipes,earthquakes")
    assert ended.returncode == 2
    assert "Received: earthquakes" in ended.stderr


# Bugs caught: a hang, a native crash or an exception that ends the suite, or is blamed on another trial.
def test_what_a_call_may_do():
    def fault(name):
        if name == "hangs":
            time.sleep(60)
        if name == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)  # a real crash would also fill the log
        if name == "raises":
            raise ValueError("on purpose")
        if name == "leaves":
            os._exit(3)
        return name.upper()

    names = ["fine", "hangs", "crashes", "raises", "leaves", "well"]
    told = {answer.argument: answer.broken or answer.value for answer in isolated(fault, names, limit_s=1)}
    assert list(told) == names
    assert (told["fine"], told["well"]) == ("FINE", "WELL")
    assert told["hangs"].startswith("hangs")
    assert told["crashes"] == "crashes natively: SIGKILL"
    assert told["raises"].startswith("ValueError: on purpose")
    assert told["leaves"] == "ends the process with code 3"


# Bugs caught: damage that changes nothing, or that cannot be repeated.
@pytest.mark.parametrize("data", [b"x", bytes(range(256)) * 8])
def test_damage_is_damage_and_repeats(data):
    for seed in range(200):
        one, how = mutated(data, np.random.default_rng(seed))
        assert one != data
        assert (one, how) == mutated(data, np.random.default_rng(seed))
    assert {mutated(data, np.random.default_rng(seed))[1] for seed in range(200)} == {
        m.__name__ for m in MUTATORS
    }


# Bug caught: an altered recipe that is the same one, which nothing could refuse.
@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_alterations_alter_and_repeat(name):
    whole = recipe_yaml(load_any_recipe(name)).encode()
    for seed in range(20):
        changed, how = altered(whole, np.random.default_rng(seed))
        assert changed != whole
        assert how
        assert (changed, how) == altered(whole, np.random.default_rng(seed))


# Commands that write nothing: what they say is all, and `config show` stands for it.
ONLY_SAY = {
    "config list", "config settings", "config check", "data serve", "doctor", "knn", "plan", "profile", "weights show",
}  # fmt: skip


# Bug caught: a new command whose file nobody has tried to write on a full disk.
def test_every_command_that_writes_has_trials_on_a_full_disk(tmp_path):
    made = Made(tmp_path / "run", tmp_path / "exported", tmp_path / "images")
    made.exported.mkdir()
    inputs = Inputs(made, tmp_path / "probed", tmp_path / "x.npz", tmp_path / "x.json", tmp_path / "damaged")
    tried = {" ".join(map(str, job.arguments(tmp_path / "x")[:2])) for job in all_jobs(inputs)}
    names = set(leaves(swav_tf, click.Context(swav_tf)))
    written = {name for name in names if any(f"{words} ".startswith(f"{name} ") for words in tried)}
    assert names - written == ONLY_SAY


def leaves(group, context, before=""):
    """The commands that can be run, by the words that are given."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, context, f"{before}{name} ")
        else:
            yield f"{before}{name}"
