"""The table that compares exported files with Keras, for `export` and `verify`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.parity import Parity


def print_parity(results: Mapping[str, Parity], reference: str = "Keras in float32") -> None:
    """Print one column per file that was compared with the reference, and the failed gates below the table."""
    from rich.console import Console
    from rich.table import Table

    from evaluate.knn import meaning_among

    table = Table()
    table.add_column(f"compared with {reference}")
    compared = {name: parity for name, parity in results.items() if parity.images}
    for name in compared:
        table.add_column(name.removesuffix(".onnx"), justify="right")
    rows: list[tuple[str, Callable[[Parity], str]]] = [
        ("logits' accuracy", lambda parity: _percent(parity.logits)),
        ("change, points", lambda parity: _points(parity.logits_drop_points)),
        ("images", lambda parity: f"{parity.images:,}"),
        ("of random pixels", lambda parity: f"{parity.images - parity.real_images:,}"),
        ("relative error", lambda parity: _error(parity.relative_error)),
        ("minimum cosine", lambda parity: _figure(parity.cosine_min)),
        ("median cosine", lambda parity: _figure(parity.cosine_median)),
        ("minimum centered cosine", lambda parity: _figure(parity.centered_cosine_min)),
        ("median centered cosine", lambda parity: _figure(parity.centered_cosine_median)),
        ("10 nearest kept", lambda parity: _percent(parity.neighbour_overlap)),
        ("same prototype", lambda parity: _percent(parity.cluster_agreement)),
        ("same class", lambda parity: _percent(parity.class_agreement)),
        ("k-NN among these images", lambda parity: _percent(parity.knn)),
        ("change, points", lambda parity: _points(parity.knn_drop_points)),
        ("least-squares classifier on features", lambda parity: _percent(parity.probe)),
        ("change, points", lambda parity: _points(parity.probe_drop_points)),
        ("verdict", lambda parity: "passed" if parity.passed else "FAILED"),
    ]
    for heading, figure in rows:
        cells = [figure(parity) for parity in compared.values()]
        if set(cells) != {"-"}:  # no row for what none of the files has
            table.add_row(heading, *cells)
    console = Console(highlight=False, soft_wrap=True)
    if compared:
        console.print(table)
        if counts := [parity.knn_images for parity in compared.values() if parity.knn_images]:
            console.print(meaning_among(counts))
    for name, parity in results.items():
        for failure in parity.failures:
            console.print(f"{name}: {failure}", markup=False)
        for gate in parity.gates_not_applied:
            console.print(f"{name}: gate not applied: {gate}", markup=False)


def _error(errors: Mapping[str, float]) -> str:
    return f"{max(errors.values()):.1e}" if errors else "-"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _points(drop: float | None) -> str:
    return "-" if drop is None else f"{0.0 - drop:+.2f}"
