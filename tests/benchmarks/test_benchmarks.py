"""The benchmarks' own arithmetic."""

import json

from benchmarks.common import Rows, in_turn, ratios


# Bugs caught: the first call counted; one side always first; the ratio upside down.
def test_pairs() -> None:
    calls = []
    first, second = in_turn(lambda: calls.append("A") or 2.0, lambda: calls.append("B") or 6.0, 3)
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB"
    found = ratios(first, second)
    assert (found["ratio"], found["first_ms"], found["second_ms"], found["pairs"]) == (3.0, 2000, 6000, 3)


def test_rows_are_kept_by_name(tmp_path) -> None:
    path = tmp_path / "rows.json"
    for name, ratio in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        Rows(path).add(name, ">= 1", ratios([1.0, 1.0], [ratio, ratio]))
    rows = json.loads(path.read_text())["rows"]
    assert {name: row["ratio"] for name, row in rows.items()} == {"a": 3.0, "b": 2.0}
