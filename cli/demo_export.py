"""The demo's second half: export the trained network, verify and time the files, and write a page with everything."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swav_tf.plumbing.log import log

if TYPE_CHECKING:
    import numpy as np

    from evaluate.benchmark.schema import Benchmark, Settings

NEEDED: Final = ("onnx", "onnxruntime", "tf2onnx")
FOLDER: Final = "exported"
BATCHES: Final = (1, 8, 32)
KERAS_BATCH: Final = 32  # Keras' processes take long to start: one is enough to compare with

SECTIONS: Final = {
    "What it learned": """
<p>{{ "{:,}".format(summary.images) }} training images, {{ summary.epochs }} epochs,
{{ "%.0f" | format(summary.seconds_pretrain) }} s, no labels. Accuracy on the test images, by kind of features:</p>
<div class="wide"><table>
<thead><tr><th>features</th><th>k-NN: 20 nearest training images vote</th><th>linear classifier</th></tr></thead>
<tbody>{% for name, (knn, linear) in accuracies.items() %}
<tr><td>{{ name }}</td><td>{{ "%.1f" | format(100 * knn) }} %</td><td>{{ "%.1f" | format(100 * linear) }} %</td></tr>
{% endfor %}</tbody></table></div>
<p>Loss {{ "%.2f" | format(summary.loss_first) }} to {{ "%.2f" | format(summary.loss_last) }}; an untrained model has
ln K = {{ "%.2f" | format(summary.ln_k) }}. <a href="{{ trained }}">{{ trained }}</a> shows the training, what the
prototypes represent and which images are neighbors.</p>""",
    "From training to a server": """
<p>The network as {% for file in files %}<code>{{ file }}</code>{{ ", " if not loop.last }}{% endfor %}: files that run
without TensorFlow. Below: how closely their features match Keras, and their speed. The k-NN there is lower than
above by its definition: each test image is classified by its 20 nearest among the other test images, not among all
training images.{% if marked %} The cells are short and marked as
such: for reliable figures, run the benchmark on its own.{% endif %}</p>
<p><code>swav-tf benchmark {{ folder }}</code></p>""",
}


def missing_packages() -> list[str]:
    """Return the packages of this half that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class DemoExport:
    """The exported files and their speed.

    Attributes:
        folder: with the ONNX files, reference.npz and parity.json.
        benchmark: their speed.
        seconds: for all of it.
    """

    folder: Path
    benchmark: Benchmark
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the figures for summary.json."""
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
    settings: Settings | None = None,
    keras: bool = True,
) -> DemoExport:
    """Export fp32 and int8, verify both on the test images, and time them on the CPU.

    Args:
        run_dir: of the trained run; receives the folder `exported`.
        test_images: uint8 (n, side, side, 3), as the model sees them.
        test_labels: (n,).
        settings: of the benchmark; None: short cells.
        keras: whether Keras is timed too.

    Raises:
        ExportError: a file does not compute what Keras computes.
    """
    from evaluate.benchmark.models import find_models
    from evaluate.benchmark.plan import plan_cells
    from evaluate.benchmark.run import run_benchmark
    from evaluate.benchmark.schema import Settings, write_benchmark
    from export.reference import Views
    from export.run import export_run
    from export.settings import ExportSettings
    from export.verify import verify

    started = time.perf_counter()
    folder = run_dir / FOLDER
    log.info("exporting ONNX in float32 and int8, each compared with Keras")
    export_run(run_dir, folder, ExportSettings(precisions=("fp32", "int8")))
    files = [folder / "model-fp32.onnx", folder / "model-int8-cpu.onnx"]
    verify(files, labeled=Views(test_images, test_labels))
    models = find_models([*files, run_dir])
    planned = plan_cells(models, runners=("ort-cpu",), precisions=None, batches=BATCHES)
    if keras:
        planned += plan_cells(models, runners=("keras",), precisions=None, batches=(KERAS_BATCH,))
    settings = settings or Settings(seconds=1, runs=50, threads=0, cuda_graph=False)
    benchmark = run_benchmark(
        planned,
        models,
        settings,
        before_each=lambda cell, done, total: log.info("speed %d/%d: %s", done + 1, total, cell.label),
    )
    if not benchmark.complete:
        raise KeyboardInterrupt
    write_benchmark(run_dir / "benchmark.json", benchmark)
    return DemoExport(folder, benchmark, time.perf_counter() - started)


def write_demo_page(
    path: Path,
    *,
    trained: Path,
    accuracies: Mapping[str, tuple[float, float]],
    summary: Mapping[str, Any],
    exported: DemoExport,
) -> None:
    """Write demo.html: the accuracies and the benchmark's report.

    Args:
        path: of the page.
        trained: the run's page in the same folder, which is linked.
        accuracies: (k-NN, linear) accuracy, 0 to 1, by kind of features.
        summary: the content of summary.json.
        exported: the figures of the files.
    """
    import jinja2

    from evaluate.benchmark.report import write_report

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    values = {
        "summary": summary,
        "accuracies": accuracies,
        "trained": trained.name,
        "folder": exported.folder,
        "files": sorted(file.name for file in exported.folder.glob("*.onnx")),
        "marked": any(cell.marks for cell in exported.benchmark.cells),
    }
    write_report(
        path,
        exported.benchmark,
        title="SwAV, without labels",
        extras=[
            (heading, environment.from_string(template).render(values))
            for heading, template in SECTIONS.items()
        ],
    )
