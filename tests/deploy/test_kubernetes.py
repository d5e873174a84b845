"""The manifests match each other and the command lines that they call."""

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cli.commands.features import command as features
from cli.commands.pretrain import command
from swav_tf.plumbing.parts import part_numbers
from swav_tf.recipe.files import load_recipe
from swav_tf.training.heartbeat import LOST, Loss, WorkerLost

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))


@pytest.fixture(scope="module")
def job():
    return {d["kind"]: d for path in MANIFESTS for d in YAML(typ="safe").load_all(path.read_text())}


# Bugs caught: names that differ between the documents, so that nothing is mounted, or no runtime is found.
def test_the_documents_belong_together(job):
    runtime, train = job["TrainingRuntime"], job["TrainJob"]
    assert train["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    [node] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert node["name"] == container["name"] == "node"  # Trainer knows both by this name
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    assert (
        volumes["runs"]["persistentVolumeClaim"]["claimName"]
        == job["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert job["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    arguments = train["spec"]["trainer"]["args"]
    assert f"--run-dir={mounts['runs']}/first" in arguments
    assert arguments[1].startswith(mounts["images"] + "/")


# Bugs caught: an unknown option or recipe; a batch that the GPUs cannot share; crops in threads, or in more processes
# than cores.
def test_the_arguments_are_the_command_lines(job):
    trainer = job["TrainJob"]["spec"]["trainer"]
    assert trainer["command"] == ["swav-tf"]
    name, *arguments = trainer["args"]
    assert name == "pretrain"
    values = {
        "$(PET_NNODES)": "4",
        "$(PET_NODE_RANK)": "1",
        "$(PET_MASTER_ADDR)": "swav-node-0-0.swav",
        "$(PET_MASTER_PORT)": "29500",
    }
    for variable, value in values.items():
        arguments = [argument.replace(variable, value) for argument in arguments]
    parsed = command.make_context("pretrain", arguments).params
    assert (parsed["nodes"], parsed["node_rank"], parsed["master"]) == (4, 1, "swav-node-0-0.swav:29500")
    gpus = trainer["numNodes"] * int(trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"])
    recipe = load_recipe(parsed["config"], parsed["overrides"])
    assert recipe.train.batch_size % gpus == 0
    assert recipe.data.processes == int(trainer["resourcesPerNode"]["requests"]["cpu"])


# Bugs caught: an unknown option; parts that are never computed, or numbered from 0.
def test_the_job_makes_all_parts(job):
    spec = job["Job"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    parts = []
    for index in (0, spec["completions"] - 1):
        environment = os.environ | variables | {"JOB_COMPLETION_INDEX": str(index)}
        script = container["args"][0].replace("exec swav-tf", "printf '%s\\n'")
        words = subprocess.check_output(["sh", "-c", script], env=environment, text=True).split()
        parsed = features.make_context("features", words[1:]).params
        parts.append(part_numbers(parsed["part"], {}))
    assert parts == [(1, 400), (400, 400)]


# Bug caught: a run that is given up though it could resume, or that restarts and fails forever.
def test_resumable_codes_restart(job):
    spec = job["TrainingRuntime"]["spec"]["template"]["spec"]
    policy = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    for_good = {code for rule in policy for code in rule["onExitCodes"]["values"]}
    assert for_good == {1, 2}
    assert WorkerLost(Loss(0, "", LOST)).exit_code not in for_good
