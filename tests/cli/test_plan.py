import json

import pytest

from cli.errors import run_and_report
from cli.main import swav_tf


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_and_report(swav_tf, ["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_one_screen_with_hours_warnings_and_assumptions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = run(capsys, "swav_800ep", "--gpus", "32", "--gpu", "a100")
    assert code == 0
    for words in ("32 x A100 80 GB in 4 machines", "12.68 GMAC", "219 collectives", "GPU hours", "assumed:"):
        assert words in out
    lines = out.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 100


def test_json_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "one_gpu", "--gpu", "h100", "--images-per-second", "1000", "--json")
    plan = json.loads(out)
    assert code == 0
    assert [pace["name"] for pace in plan["paces"]] == ["as measured"]
    assert plan["memory"]["fits"]
    assert plan["cost"]["step_flops"] == pytest.approx(75.57e9, rel=1e-3)
    assert plan["assumptions"]


def test_a_probe_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "probe", "--gpu", "h100")
    assert code == 2
    assert "kind pretrain is needed" in err
