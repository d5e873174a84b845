"""README.md of an exported folder: a model card in Hugging Face's format, so that it can be uploaded as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from evaluate.backends.onnx_metadata import OnnxMetadata
from export.parity import Parity

NAME: Final = "README.md"
_MARK: Final = (
    "<!-- Written by swav-tf export. Without this line the file is yours, and later exports keep it. -->"
)
_CARD: Final = """\
---
license: unknown  # set the one under which you may publish the weights
library_name: onnx
pipeline_tag: {task}
tags: [swav, self-supervised-learning, image-feature-extraction, onnx]
---
{mark}

# {recipe}: {purpose}

A network trained by [SwAV](https://arxiv.org/abs/2006.09882), a self-supervised method, with swav-tf.

| | |
|---|---|
| recipe | {recipe}, {step:,} optimizer steps |
| training images | {dataset} |
| outputs | {outputs} |
| SHA-256 of the weights | `{weights}` |
| made by | {versions} |

## Files

Each file was compared with Keras in float32 before it was written; `parity.json` has all figures.

| file | precision | median cosine | neighbors kept | k-NN accuracy (Keras) | logits' accuracy (Keras) |
|---|---|---|---|---|---|
{files}

## Input

1. {orientation}; RGB; {depth}; transparent parts over the color {background}.
2. Resize the short side to {resize} pixels ({interpolation}), then crop {crop}x{crop} pixels from the center.
3. {last}

The metadata `preprocessing` of each file states the same as JSON. With swav-tf's extra `onnx`, without TensorFlow:

```python
from evaluate import open_model

features = open_model("{first}").features(["photo.jpg"])
```

`swav-tf verify .` repeats the comparison on another machine.
{classes}
## License and limits

The license of the weights depends on the images that they were trained on and, for imported weights, on their origin:
set `license` above before you publish. `reference.npz` contains {reference} of the compared images: remove it if they
must not be public. The features reflect the contents and the gaps of the training images; test them on your own images.
"""


def write_card(
    folder: Path, before: Path, metadata: OnnxMetadata, outputs: tuple[str, ...], files: Mapping[str, Parity]
) -> None:
    """Write README.md into `folder`, unless `before`, where it will be moved to, has one that a person wrote.

    The metadata are those of any of the files; `files` has the comparison of each with Keras, by name.
    """
    earlier = before / NAME
    if earlier.is_file() and _MARK not in earlier.read_text(encoding="utf-8", errors="replace"):
        return
    image, classes = metadata.preprocessing, metadata.class_names
    last = "Scale to [0, 1], subtract the mean {mean} and divide by {std}; float32 (n, 3, {crop}, {crop})."
    if image.inside:
        last = "Pass the bytes unchanged: uint8 (n, {crop}, {crop}, 3)."
    text = _CARD.format(
        mark=_MARK,
        task="image-classification" if classes else "image-feature-extraction",
        purpose=f"a classifier of {len(classes)} classes" if classes else "features of images",
        recipe=metadata.recipe,
        step=metadata.step,
        dataset=metadata.dataset,
        outputs=", ".join(f"`{name}`" for name in outputs),
        weights=metadata.weights_sha256,
        versions=", ".join(f"{tool} {version}" for tool, version in metadata.versions.items() if version),
        files="\n".join(_row(name, parity) for name, parity in files.items()),
        last=last.format(**image.model_dump()),
        first=next(iter(files)),
        classes=f"\n## Classes\n\n{', '.join(classes[:100])}{', ...' * (len(classes) > 100)}\n"
        if classes
        else "",
        reference=next(iter(files.values())).real_images,
        **image.model_dump(include={"orientation", "depth", "background", "resize", "crop", "interpolation"}),
    )
    (folder / NAME).write_text(text, encoding="utf-8")


def _row(name: str, parity: Parity) -> str:
    cells = [
        _cell("{:.6f}", parity.cosine_median),
        _cell("{:.1%}", parity.neighbour_overlap),
        _cell("{:.1%} ({:.1%})", parity.knn, parity.knn_reference),
        _cell("{:.1%} ({:.1%})", parity.logits, parity.logits_reference),
    ]
    return f"| `{name}` | {name.removeprefix('model-').removesuffix('.onnx')} | {' | '.join(cells)} |"


def _cell(text: str, *figures: float | None) -> str:
    return "-" if None in figures else text.format(*figures)
