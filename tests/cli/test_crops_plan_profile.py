"""`crops`, `plan` and `profile`."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from cli.commands.profile import print_profile
from swav_tf.training.profile.measure import Profile, Timing
from swav_tf.training.profile.verdict import Verdict
from tests.cli.command_line import write_noise


# Bugs caught: --rows, --epoch or an override without effect; crops that differ from call to call.
def test_crops(tmp_path, output):
    def sheet(arguments=""):
        path = tmp_path / "new" / "sheet.png"
        assert f"{path}: " in output(f"crops -c demo --output {path} {arguments}")
        return np.asarray(Image.open(path))

    first = sheet()
    assert first.std() > 10
    assert sheet("--rows 3").shape[0] < first.shape[0]
    np.testing.assert_array_equal(first, sheet())
    assert (first != sheet("--epoch 1")).any()
    assert (first != sheet("-o train.seed=32")).any()


def test_crops_of_a_folder(tmp_path, output, refused):
    images = write_noise(tmp_path / "x", [f"{number}.jpg" for number in range(4)], height=60, width=80)
    line = f"crops {images} -c one_gpu -o data.kind=images --rows 2 --output {tmp_path}/sheet.png"
    heights = []
    for rows in (2, 9):
        assert "8 crops of each image" in output(line.replace("--rows 2", f"--rows {rows}"))
        heights.append(Image.open(tmp_path / "sheet.png").height)
    assert heights[1] > 1.8 * heights[0]  # all four images
    refused(
        line.replace(f"{tmp_path}/sheet.png", f"{images}/sheet.png"),
        2,
        "must not be written among the images",
    )


def test_plan(monkeypatch, output):
    monkeypatch.setenv("COLUMNS", "100")
    printed = output("plan swav_800ep --gpus 32 --gpu a100")
    for words in (
        "32 x A100 80 GB in 4 machines",
        "12.68 GMAC",
        "75.6 GFLOP per image and 310 TFLOP per step",
        "219 collectives",
        "GPU hours",
        "assumptions:",
    ):
        assert words in " ".join(printed.split())
    lines = printed.splitlines()
    assert len(lines) <= 42  # one screen
    assert max(map(len, lines)) <= 100
    plan = json.loads(output("plan one_gpu --gpu h100 --images-per-second 1000 --json"))
    assert plan["pace"]["images_per_second"] == pytest.approx(1000)
    assert plan["memory"]["fits"]
    # 75.57 GFLOP, and in one_gpu's parts a second forward pass of 2 x 12.75 GMAC.
    assert plan["image_flops"] == pytest.approx(75.57e9 + 2 * plan["cost"]["forward_macs"], rel=1e-3)
    assert plan["step_flops"] == plan["image_flops"] * plan["batch_size"]
    assert plan["memory"]["total"] <= plan["memory"]["usable"]
    assert plan["assumptions"]


# Bug caught: the end of a training that is shorter than the measurement.
def test_profile(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    short = write_noise(tmp_path / "x", [f"{number}.jpg" for number in range(16)], height=32, width=32)
    epochs = "-o train.epochs=1 -o optimizer.warmup_epochs=0 -o method.prototypes_frozen_steps=0"
    result = run(f"profile {short} -c demo -o train.batch_size=16 {epochs} --steps 2 --json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["verdict"]["bound"] in ("input", "device")
    assert found["input_cpu_ms"] > 0
    assert list(tmp_path.iterdir()) == [short]  # no run folder


PROFILE = Profile(
    recipe="mine", source="photos/", images=1000, steps=300, devices="GPU", replicas=2, batch_size=100,
    accumulation_steps=1, precision="mixed_float16", cores=8, threads=8, processes=0,
    input_images_per_second=400.0, input_cpu_ms=2.5, step=Timing(100, 90, 0.01),
    loop=Timing(250, 900, 0.02), wait_ms=150.0, host_ms=5.0,
    tflops=3.2, memory_mb=12_300.0, hours=50.0,
    load=9.0, verdict=Verdict("input", 0.6, "Input-bound: it waits."),
)  # fmt: skip


# Bug caught: a share of the loop without a name.
def test_a_loop_that_is_slower_than_its_step(capsys):
    profile = dataclasses.replace(
        PROFILE, devices="CPU", replicas=1, step=Timing(294, 500, 0.1),
        loop=Timing(420, 800, 0.1), wait_ms=4.0,
    )  # fmt: skip
    print_profile(profile)
    printed = capsys.readouterr().out
    assert "70 %" in printed  # the network: 294 of 420
    assert "29 %" in printed  # 122 of 420: slower than the step alone


def test_the_table_of_a_profile(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_profile(PROFILE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Input-bound: it waits."
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    for words in (
        ("mine", "2 GPUs", "8 cores", "photos/"),
        ("input alone", "250.0", "400.0", "400 images per CPU second"),
        ("loop", "250.0", "400.0", "3.2 TFLOP/s"),
        ("waiting for crops", "150.0", "60 %"),
        ("network and communication", "95.0", "38 %"),
        ("busy", "load 9.0"),
        ("12.30 GB",),
        ("300 steps", "50.0 hours"),
    ):
        assert any(all(word in line for word in words) for line in lines), words
