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

import faults.__main__ as suite
from cli.main import swav_tf
from faults import folders, kills, report
from faults.altered_settings import altered
from faults.code_version import code_version
from faults.commands import Ended
from faults.disk_full import all_jobs
from faults.isolated import isolated
from faults.jobs import Job, Made, benchmark, classifier, pretrain, shard
from faults.kills import ENOUGH_TRIALS, Course, never_went_on
from faults.mutate import MUTATORS, mutated
from faults.outcomes import files_trouble, run_trouble
from faults.trial import Plan, Trial
from faults.writers import Inputs
from swav_tf.recipe.files import bundled_recipes, load_any_recipe, recipe_yaml
from swav_tf.runs.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "faults", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Bugs caught: a kind that cannot be run any more, results that are lost.
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


# Bugs caught: a broken-off suite that begins again; one that calls changed code good by what it found of the old.
def test_kinds_are_done_once_for_the_same_code_only(tmp_path, monkeypatch, capsys):
    ran, code = [], "commit changes"
    monkeypatch.setattr(suite, "code_version", lambda folder: code)
    monkeypatch.setattr(suite, "_run", lambda kind, **_: ran.append(kind) or [Trial(0, "x", "refused")])

    def again(*more):
        ran.clear()
        results = str(tmp_path / "faults.json")
        assert suite.main(["--only", "recipes,images", "--count", "2", "--json", results, *more]) == 0
        return ran

    assert again() == ["recipes", "images"]
    assert again() == []
    assert capsys.readouterr().out.count("done on") == 2
    assert again("--again") == ["recipes", "images"]
    assert again("--seed", "3") == ["recipes", "images"]
    code = "commit other changes"
    assert again("--seed", "3") == ["recipes", "images"]
    code = None  # no git: nobody knows which code the results are of
    assert again("--seed", "3") == again("--seed", "3") == ["recipes", "images"]


# Bugs caught: an edit that is not committed, or is in a file that git does not know, taken for the code that was tested.
def test_the_version_of_the_code_tells_every_change(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert code_version(tmp_path) is None
    git("init")
    assert code_version(tmp_path) is None
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "first")
    versions = [code_version(tmp_path)]
    assert code_version(tmp_path) == versions[0]
    (tmp_path / "runs.log").write_text("no code")
    assert code_version(tmp_path) == versions[0]
    for name, text in (("a.py", "2"), ("a.py", "3"), ("b.py", "1"), ("b.py", "2")):
        (tmp_path / name).write_text(text)
        versions.append(code_version(tmp_path))
    git("commit", "-am", "second")
    versions.append(code_version(tmp_path))
    assert None not in versions
    assert len(set(versions)) == len(versions)
    (tmp_path / "inside").mkdir()
    assert code_version(tmp_path / "inside") is None  # of another project's repository


# `data shard`, killed; given "forgets", it has what no reader of ends can see: it always begins anew.
KILLED = """
import sys
from pathlib import Path
import swav_tf.data.sharding
from faults import commands, kills
from faults.jobs import Made, labelled_images, shard
from faults.trial import Plan

folder, forgets = Path(sys.argv[1]), sys.argv[2] == "forgets"
if forgets:
    swav_tf.data.sharding._Packing._is_intact = lambda *_: False
kills.make = lambda commands, folder: Made(folder, folder, labelled_images(folder / "images", 1200))
kills.jobs = lambda made: [(shard(made.images), 6)]
# Where the kills fall is chance: in a trial they may all come before anything is noted, or after all is done.
for trial in kills.run(Plan(seed=20, numbers=range(6), folder=folder, code=7)):
    if trial.finding or trial.went_on and not forgets:
        break
print(trial.outcome, trial.went_on, trial.finding)
"""


# Bug caught: a suite that compares ends only, for which a command that begins anew after each kill is as good.
@pytest.mark.parametrize("how", ["keeps", "forgets"])
def test_a_job_that_begins_anew_is_found(tmp_path, how):
    command = [sys.executable, "-c", KILLED, str(tmp_path), how]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    outcome = ended.stdout.strip()
    if how == "keeps":
        assert outcome.startswith("the same result ")
        assert int(outcome.split()[3]) >= 1
    else:
        assert outcome.startswith("broken ")
        assert "began anew" in outcome


# Bug caught: a job that never leaves anything to go on from, so that nothing is asked of it.
def test_a_job_that_never_went_on_is_found(tmp_path):
    wanted = [shard(tmp_path), benchmark(tmp_path)]
    trials = [
        Trial(n, wanted[n % 2].name, "the same result", went_on=n % 2) for n in range(2 * ENOUGH_TRIALS)
    ]
    [found] = never_went_on(wanted, trials)
    assert (found.what, found.faults) == ("data shard", 0)
    assert "begins anew" in found.finding
    assert not list(never_went_on(wanted, trials[:2]))  # by chance
    table = report.table({"kills": report.entry([*trials, found], {"seed": 1}, seconds=1)})
    assert "benchmark | 3 | the same result 3; went on 3 times | 0 |" in table
    assert "data shard | 3 | the same result 3 | 1 |" in table


def broken_off(folder, kind, step):
    """A run folder with one checkpoint."""
    arrays = {"a": np.zeros(1, np.float32)}
    CheckpointStore(folder / "run" / "checkpoints", kind=kind).write(step, arrays, {})


# Bug caught: `probe --cached`, killed behind its checkpoint, asked for a step that it does not tell: KeyError.
def test_a_cached_probe_leaves_nothing_to_go_on_from(tmp_path):
    broken_off(tmp_path, "probe", 0)
    assert classifier("probe", tmp_path, cached=True).remains(tmp_path) == set()
    assert classifier("probe", tmp_path).remains(tmp_path) == {"step 0"}


# Bug caught: "began anew" of a pretraining that was killed behind its summary: it is complete, and the same command says so.
def test_a_complete_pretraining_need_not_go_on(tmp_path):
    broken_off(tmp_path, "pretrain", 44)
    assert pretrain().remains(tmp_path) == {"step 44"}
    (tmp_path / "run" / "summary.json").write_text('{"resumed_from_step": null}')
    assert pretrain().remains(tmp_path) == set()


def fails(*_):
    return {}["resumed_from_step"]


# Bug caught: an exception where a job is looked at, which loses all trials of the kind.
@pytest.mark.parametrize("where", [{"remains": fails}, {"kept": fails, "remains": lambda folder: {"step 1"}}])
def test_a_kill_that_cannot_be_judged_is_a_finding(tmp_path, monkeypatch, where):
    class Done:
        def __init__(self, folder): ...

        def run(self, arguments):
            return Ended(0, "", "", 1.0)

    usual = {"arguments": lambda f: [], "sign": "*", "result": lambda f: {}, "whole": lambda f: ""}
    monkeypatch.setattr(kills, "Commands", Done)
    monkeypatch.setattr(kills, "make", lambda commands, folder: None)
    monkeypatch.setattr(kills, "jobs", lambda made: [(Job("a", **usual, **where), 0), (Job("b", **usual), 0)])
    monkeypatch.setattr(kills, "undisturbed", lambda *_: Course({}, 1.0, 1.0))
    one, two, three = kills.run(Plan(seed=20, numbers=range(3), folder=tmp_path, code=7))
    assert [trial.outcome for trial in (one, two, three)] == ["broken", "the same result", "broken"]
    assert "KeyError: 'resumed_from_step' (test_suite.py, line " in one.finding


# Bug caught: the same in a folder's trial.
def test_a_folder_that_cannot_be_judged_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "Ground", lambda plan: None)
    monkeypatch.setattr(
        folders, "_trials", lambda _: [("a", fails), ("b", lambda folder, draw: ("fine", ""))]
    )
    one, two = folders.run(Plan(seed=20, numbers=range(2), folder=tmp_path, code=5))
    assert (one.outcome, two.outcome, two.finding) == ("broken", "fine", "")
    assert "KeyError" in one.finding


# Bugs caught: what is still under another name taken for half-written; what is half-written under its own taken for whole.
def test_only_what_has_its_own_name_must_be_whole(tmp_path):
    (tmp_path / ".part-4c4db99c-figures.json").write_text("")
    assert files_trouble(tmp_path) == run_trouble(tmp_path, "pretrain") == ""
    (tmp_path / "figures.json").write_text("")
    assert "figures.json" in files_trouble(tmp_path)
    assert "figures.json" in run_trouble(tmp_path, "pretrain")


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
    "config list", "config settings", "config check", "doctor", "knn", "plan", "profile", "weights show",
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
