"""The document that a benchmark is written as."""

import json

import pytest

from evaluate.benchmark.schema import json_schema, read_benchmark, write_benchmark
from swav_tf.plumbing.errors import DataError, UsageError


def test_the_document_fits_its_schema_and_is_read_back(measured, tmp_path) -> None:
    write_benchmark(tmp_path / "b.json", measured)
    assert read_benchmark(tmp_path / "b.json") == measured
    schema = json_schema()
    document = json.loads((tmp_path / "b.json").read_text())
    assert set(document) == set(schema["properties"])
    assert set(document["cells"][0]) == set(schema["$defs"]["Cell"]["properties"])
    undescribed = [
        f"{name}.{key}"
        for name, part in {**schema["$defs"], "Benchmark": schema}.items()
        for key, value in part["properties"].items()
        if "description" not in value
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "format None"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1}', "do not fit"),
    ],
)
def test_other_files_are_no_benchmarks(text, part, tmp_path) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(DataError, match=part):
        read_benchmark(tmp_path / "b.json")
    with pytest.raises(UsageError, match="not there"):
        read_benchmark(tmp_path / "c.json")
