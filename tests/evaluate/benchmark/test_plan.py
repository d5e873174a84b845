"""What there is to run, and which cells follow from it."""

from dataclasses import replace

import pytest

from evaluate.benchmark.artifacts import find_artifacts
from evaluate.benchmark.run import plan_cells, with_peers
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.exported import make_exported


def test_what_is_no_model_is_told(tmp_path, exported) -> None:
    with pytest.raises(UsageError, match="not there"):
        find_artifacts([tmp_path / "gone"])
    with pytest.raises(UsageError, match="holds none"):
        find_artifacts([tmp_path])
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"x\.onnx"):
        find_artifacts([tmp_path])
    twin = make_exported(tmp_path / "elsewhere" / "tiny", ("fp32",))
    with pytest.raises(UsageError, match="must differ"):
        find_artifacts([exported, twin])
    (twin / "copy.onnx").write_bytes((twin / "model-fp32.onnx").read_bytes())
    with pytest.raises(UsageError, match="one file of a kind and precision"):
        find_artifacts([twin])
    with pytest.raises(UsageError, match="--runner must be of"):
        plan_cells(find_artifacts([exported]), runners=("ort",), precisions=None, batches=(1,))


def test_int8_for_another_processor_is_skipped(exported, monkeypatch) -> None:
    monkeypatch.setattr("evaluate.benchmark.run.why_not", lambda runner: None)
    [planned] = plan_cells(
        find_artifacts([exported]), runners=("ort-cuda",), precisions=("int8",), batches=(1,)
    )
    assert "--target tensorrt" in planned.cell.reason
    assert planned.artifact is None


# Bug caught: a batch that an engine runs in parts, timed as if it were one.
def test_a_batch_beyond_an_engines_profile_is_skipped(exported, monkeypatch) -> None:
    monkeypatch.setattr("evaluate.benchmark.run.why_not", lambda runner: None)
    [file] = find_artifacts([exported / "model-fp32.onnx"])
    engine = replace(file, model=file.model.model_copy(update={"kind": "engine"}), batches=(2, 8))
    planned = plan_cells([engine], runners=("tensorrt",), precisions=("fp32",), batches=(1, 2, 8, 9))
    assert [one.artifact is not None for one in planned] == [False, True, True, False]
    assert "takes 2 to 8 images at once" in planned[0].cell.reason


# Bug caught: a peer that was named twice over, or the runners that were named thrown away.
def test_peers_come_behind() -> None:
    assert with_peers(("trtexec", "ort-cpu"))[:2] == ("trtexec", "ort-cpu")
    assert sorted(with_peers(("trtexec", "ort-cpu"))) == sorted({"ort-cpu", *with_peers(None)[5:]})
    assert with_peers(None)[:5] == ("ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "keras")
