"""The quickstart notebook, run from top to bottom. A lane of its own: `make notebook`."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


# Bugs caught: a cell that no longer runs, features that are no better than pixels, a file whose features differ.
@pytest.mark.notebook
@pytest.mark.timeout(1_800)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["summary"]["knn_top1"] > names["summary"]["knn_top1_pixels"]
    assert names["probed"].summary["last"]["top1"] > 0.95
    assert names["cosines"].min() > 0.99
