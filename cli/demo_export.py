"""The demo's second half: the trained network as files for servers, proof, speed, and a page that shows it all."""

from __future__ import annotations

import base64
import html
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

    from evaluate.benchmark.schema import Benchmark, Settings

NEEDED: Final = ("onnx", "onnxruntime", "tf2onnx")
FOLDER: Final = "exported"
BATCHES: Final = (1, 8, 32)
KERAS_BATCH: Final = 32  # Keras' processes take long to start: one is enough to compare with
TIMEOUT_SECONDS: Final = 120.0


def missing_packages() -> list[str]:
    """What must be installed for this half and is not."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class DemoExport:
    """What came of it.

    Attributes:
        folder: with the ONNX files, reference.npz and parity.json.
        benchmark: their speed.
        seconds: that all of it took.
    """

    folder: Path
    benchmark: Benchmark
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The figures for summary.json."""
        files = {
            Path(model.file).name: {
                "bytes": model.bytes,
                "knn_top1": model.accuracy.knn,
                "cosine_min": model.accuracy.cosine_min,
            }
            for model in self.benchmark.models
            if model.accuracy
        }
        speeds = {
            cell.label: round(cell.best.images_per_second, 1)
            for cell in self.benchmark.cells
            if cell.best is not None
        }
        return {"files": files, "images_per_second": speeds, "seconds": round(self.seconds, 2)}


def export_and_measure(
    run_dir: Path,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    tell: Callable[[str], None],
    settings: Settings | None = None,
    keras: bool = True,
) -> DemoExport:
    """Exports fp32 and int8, verifies both on the test digits, and measures them on the CPU.

    Args:
        run_dir: of the trained run; gets the folder `exported`.
        test_images: uint8 (n, side, side, 3), as the model sees them.
        test_labels: (n,).
        tell: called with a line about what goes on.
        settings: of the benchmark; None: short cells.
        keras: whether Keras is measured too.

    Raises:
        ExportError: a file does not compute what Keras computes.
    """
    from evaluate.benchmark.artifacts import find_artifacts
    from evaluate.benchmark.plan import plan_cells
    from evaluate.benchmark.run import run_benchmark
    from evaluate.benchmark.schema import Settings, write_benchmark
    from export.run import export_run
    from export.settings import ExportSettings
    from export.verify import Labelled, verify

    began = time.perf_counter()
    folder = run_dir / FOLDER
    tell("exporting: ONNX in float32 and int8, each compared with Keras")
    export_run(run_dir, folder, ExportSettings(precisions=("fp32", "int8")))
    files = [folder / "model-fp32.onnx", folder / "model-int8-cpu.onnx"]
    verify(files, labelled=Labelled(test_images, test_labels))
    artifacts = find_artifacts([*files, run_dir])
    planned = plan_cells(artifacts, runners=("ort-cpu",), precisions=None, batches=BATCHES)
    if keras:
        planned += plan_cells(artifacts, runners=("keras",), precisions=None, batches=(KERAS_BATCH,))
    settings = settings or Settings(seconds=1, runs=50, max_seconds=4, rounds=1, threads=0, cuda_graph=False)
    benchmark = run_benchmark(
        planned,
        artifacts,
        settings,
        timeout_seconds=TIMEOUT_SECONDS,
        before_each=lambda cell, done, total: tell(f"speed {done + 1}/{total}: {cell.label}"),
    )
    if not benchmark.complete:
        raise KeyboardInterrupt
    write_benchmark(run_dir / "benchmark.json", benchmark)
    return DemoExport(folder, benchmark, time.perf_counter() - began)


def write_demo_page(
    path: Path,
    *,
    picture: Path,
    accuracies: Mapping[str, tuple[float, float]],
    summary: Mapping[str, Any],
    exported: DemoExport,
) -> None:
    """Writes demo.html: picture, accuracies, and the benchmark's report.

    Args:
        path: of the page.
        picture: demo.png, which goes into it.
        accuracies: for each kind of feature, (k-NN, linear) accuracy, 0 to 1.
        summary: what summary.json holds.
        exported: the figures of the files.
    """
    from evaluate.benchmark.report import write_report

    write_report(
        path,
        exported.benchmark,
        title="SwAV on handwritten digits, without a label",
        extras=[
            ("What it learned", _accuracy_table(accuracies, summary)),
            ("Training, and what the prototypes stand for", _picture(picture)),
            ("From training to a server", _steps(exported)),
        ],
    )


def _accuracy_table(accuracies: Mapping[str, tuple[float, float]], summary: Mapping[str, Any]) -> str:
    heads = ("features", "k-NN: 20 nearest training digits vote", "linear classifier")
    rows = [
        (html.escape(name.replace("\n", " ")), f"{100 * knn:.1f} %", f"{100 * linear:.1f} %")
        for name, (knn, linear) in accuracies.items()
    ]
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in rows)
    return (
        f"<p>{summary['images']:,} training digits, {summary['epochs']} epochs, {summary['seconds_pretrain']:.0f} s, "
        "no label. Then the test digits, by what the features are worth:</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<p>Loss {summary['loss_first']:.2f} to {summary['loss_last']:.2f}; a model that knows nothing has "
        f"ln K = {summary['ln_k']:.2f}.</p>"
    )


def _picture(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    text = "loss and k-NN accuracy by epoch; accuracies; images nearest to each prototype"
    return f'<div class="picture"><img alt="{text}" src="data:image/png;base64,{data}"></div>'


def _steps(exported: DemoExport) -> str:
    names = ", ".join(
        f"<code>{html.escape(path.name)}</code>" for path in sorted(exported.folder.glob("*.onnx"))
    )
    marked = (
        " Its cells are short and marked so: for figures to rely on, run it alone."
        if any(cell.marks for cell in exported.benchmark.cells)
        else ""
    )
    return (
        f"<p>The network as {names}: files that run without TensorFlow. Below: whether their features are still "
        "Keras', and how fast they are. The k-NN there is stricter than above: each test digit is classified by the "
        f"other test digits alone.{marked}</p><p><code>swav-tf benchmark {html.escape(str(exported.folder))}</code></p>"
    )
