import json

import pytest

from tests.cli.command_line import Run, Told


def test_one_screen_with_hours_warnings_and_assumptions(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = told("plan", "swav_800ep", "--gpus", "32", "--gpu", "a100")
    for words in (
        "32 x A100 80 GB in 4 machines",
        "12.68 GMAC",
        "219 collectives",
        "GPU hours",
        "assumptions:",
    ):
        assert words in out
    lines = out.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 100


def test_json_has_every_figure(told: Told) -> None:
    plan = json.loads(told("plan", "one_gpu", "--gpu", "h100", "--images-per-second", "1000", "--json"))
    assert [pace["name"] for pace in plan["paces"]] == ["as measured"]
    assert plan["memory"]["fits"]
    assert plan["cost"]["step_flops"] == pytest.approx(75.57e9, rel=1e-3)
    assert plan["assumptions"]


def test_a_probe_recipe_is_refused(run: Run) -> None:
    code, _, err = run("plan", "probe", "--gpu", "h100")
    assert code == 2
    assert "kind pretrain is needed" in err
