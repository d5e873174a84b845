import json
from pathlib import Path

import pytest

from tests.cli.command_line import Run

TINY = ("-c", "demo", "-o", "train.batch_size=128", "--steps", "2", "--no-memory")


def test_one_screen_that_names_the_bound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.tables.profile import print_profile
    from swav_tf.training.profile.measure import Profile, Timing
    from swav_tf.training.profile.memory import Peak
    from swav_tf.training.profile.parts import Part
    from swav_tf.training.profile.verdict import Verdict

    monkeypatch.setenv("COLUMNS", "100")
    print_profile(
        Profile(
            recipe="mine", source="photos/", images=1000, steps=300, devices="GPU", replicas=2, batch_size=100,
            accumulation_steps=1, precision="mixed_float16", cores=8, threads=8, processes=0,
            input_images_per_second=400.0, input_cpu_ms=2.5, step=Timing(100, 90, 0.01),
            loop=Timing(250, 900, 0.02), wait_ms=150.0, host_ms=5.0,
            parts=(Part("forward, backbone", 30.0), Part("update", 10.0)), part_images=50,
            communication_ms=25.0, tflops=3.2, memory=Peak(12_300.0, 0.0, True), hours=50.0,
            load=9.0, verdict=Verdict("input", 0.6, "input bound: it waits."),
        )
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "input bound: it waits."
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    for words in (
        ("mine", "2 GPUs", "8 cores", "photos/"),
        ("input alone", "250.0", "400.0", "400 images per CPU second"),
        ("loop", "250.0", "400.0", "3.2 TFLOP/s"),
        ("waiting for crops", "150.0", "60 %"),
        ("communication", "25.0", "10 %"),
        ("forward, backbone", "30.0", "75 %"),
        ("busy", "load 9.0"),
        ("12.30 GB",),
        ("300 steps", "50.0 hours"),
    ):
        assert any(all(word in line for word in words) for line in lines), words


def test_json_and_nothing_else(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("profile", *TINY, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["verdict"]["bound"] in ("input", "device")
    assert found["input_cpu_ms"] > 0
    assert err == ""
    assert list(tmp_path.iterdir()) == []  # no run folder


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere", "-c", "one_gpu", "--no-memory"], "nowhere"),
        (["-c", "probe"], "kind pretrain is needed"),
        (["-c", "demo", "--images", "50"], "--images is for profiles without DATA"),
        (["-c", "demo", "-o", "train.accumulation_steps=3", "--no-memory"], "cannot be split"),
    ],
)
def test_what_is_refused(arguments: list[str], part: str, run: Run) -> None:
    result = run("profile", *arguments)
    assert result.code != 0
    assert part in result.err
