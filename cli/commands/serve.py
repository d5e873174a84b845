"""`swav-tf serve`: serve features and similar images over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.model_options import provider_option
from cli.options import (
    FOLDER,
    PATH,
    Report,
    amount_option,
    count_option,
    index_option,
    json_options,
    threads_option,
)


# fmt: off
@click.command()
@click.argument("exported", type=PATH)
@click.option("--features", type=PATH, metavar="FILE",
              help="Feature file to search for similar images, computed with the same model.")
@index_option("searched instead of --features; add --features only if the features have moved")
@click.option("--images", type=FOLDER, metavar="DIR",
              help="Folder with the images of --features or --index; without it, the search page shows no pictures.")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all.")
@count_option("--port", least=0, most=65535, default=8000, help="Port to listen on; 0 selects a free one.")
@count_option("--batch", default=32, help="Largest number of images computed at once.")
@click.option("--wait-ms", type=click.FloatRange(0, 3_600_000), default=2.0, metavar="MS",
              help="How long the first image of a batch waits for more, in milliseconds.")
@amount_option("--max-mb", default=32.0, metavar="MIB", help="Maximum size of a request body, in MiB.")
@count_option("--max-images", default=64, help="Maximum number of images in a request.")
@count_option("--max-pixels", help="Maximum number of pixels in an image.", show_default="as in the model's recipe")
@count_option("--queue", default=256, help="Maximum number of waiting images; more are refused with status 503.")
@threads_option("Threads that decode images")
@provider_option
@json_options
def command(
    exported: Path,
    features: Path | None,
    index: Path | None,
    images: Path | None,
    host: str,
    port: int,
    provider: str | None,
    threads: int,
    report: Report,
    **limits: Any,
) -> None:
    """Serve the features of EXPORTED, a file or folder written by `swav-tf export`, over HTTP, without TensorFlow.

    From a folder, model-fp32.onnx is served. On SIGTERM, accepted requests are answered first. docs/serve.md describes
    responses and limits.

    \b
    POST /features  features of an image, or of several as multipart/form-data
    POST /similar   similar images; requires --features or --index
    GET /           search page: drop an image to find similar ones; requires --features or --index
    GET /health     state and model
    GET /metrics    metrics in Prometheus format

    \b
    Examples:
      swav-tf serve exported
      swav-tf serve exported --features train.npz --images photos/
      swav-tf serve exported --index photos.index --images photos/
      swav-tf serve exported/model-int8-cpu.onnx --host 0.0.0.0 --port 80 --batch 8 --wait-ms 5
      curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/features
    """
    import numpy as np

    from evaluate.backends import open_model
    from evaluate.search import open_index
    from evaluate.serve.gallery import Gallery, searchable
    from evaluate.serve.server import listen, serve
    from evaluate.serve.service import Limits, Service

    if images is not None and features is None and index is None:
        raise click.UsageError("--images needs the --features of these images, or their --index.")
    limits["body"], limits["images"] = int(limits.pop("max_mb") * 2**20), limits.pop("max_images")
    limits["pixels"] = limits.pop("max_pixels")
    model = open_model(_model_of(exported), provider=provider)
    gallery = None
    if index is not None:
        gallery = Gallery(open_index(index, features), model, images)
    elif features is not None:
        gallery = Gallery(searchable(features), model, images)
    bound = listen(host, port)
    side = model.input_view.crop
    model.features(np.zeros((limits["batch"], side, side, 3), np.uint8))  # fails now, if ever
    service = Service(model, Limits(**limits), gallery=gallery, threads=threads)
    address, found = bound.getsockname()[:2]
    url = f"http://[{address}]:{found}" if ":" in address else f"http://{address}:{found}"
    facts = {"url": url, "host": address, "port": found, "model": model.facts.as_dict()}
    line = json.dumps(facts) if report.as_json else f"Serving {model.facts.path} at {url}"
    serve(service, bound, lambda: click.echo(line))


def _model_of(exported: Path) -> Path:
    """Return the file to serve."""
    if not exported.is_dir():
        return exported
    usual = exported / "model-fp32.onnx"
    if not usual.is_file():
        raise click.UsageError(
            f"EXPORTED must be a file from `swav-tf export`, or a folder with {usual.name}. Received: {exported}, a "
            "folder without it. Pass the file to serve."
        )
    return usual
