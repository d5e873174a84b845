"""model.json of a probe or fine-tuned model: architecture, normalization, classes, origin of the weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from swav_tf.data.labels import LabeledData
from swav_tf.data.sources import fingerprint
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.values import nested_diff
from swav_tf.recipe.files import load_any_recipe
from swav_tf.recipe.pretraining import Model, Recipe
from swav_tf.runs.checkpoint import sha256_of_facts
from swav_tf.runs.folder import RunFolder

BY_SGD, BY_CACHE, BY_IMPORT = "sgd", "cached features", "imported"
NAME = "model.json"


@dataclass(frozen=True)
class ModelFacts:
    """The content of model.json."""

    model: Model  # the backbone
    mean: tuple[float, float, float]  # per channel, of images in [0, 1]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]  # in the order of the classifier's outputs
    how: str  # BY_SGD, BY_CACHE or BY_IMPORT
    origin: dict[str, Any]  # where the initial weights of the backbone came from
    train_images: int  # 0 if unknown
    train_sha256: str  # of their names; empty if unknown
    train_labels_sha256: str = ""  # of their classes; empty if unknown

    @classmethod
    def of(cls, pretrained: Recipe, origin: dict[str, Any], data: LabeledData, how: str) -> ModelFacts:
        """Collect the facts of a new run from the recipe and origin of its backbone and from its images."""
        images = fingerprint(data.train)
        return cls(
            model=pretrained.model,
            mean=pretrained.augment.mean,
            std=pretrained.augment.std,
            class_names=data.class_names,
            how=how,
            origin=origin,
            train_images=images["images"],
            train_sha256=images["names_sha256"],
            train_labels_sha256=hashlib.sha256(data.train_labels.tobytes()).hexdigest(),
        )

    @classmethod
    def read(cls, path: Path) -> ModelFacts:
        """Read model.json.

        Raises:
            UsageError: the file is missing, edited or damaged.
        """
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            # Earlier versions wrote no checksum.
            if facts.pop("sha256", None) not in (None, sha256_of_facts(facts)):
                raise ValueError("the checksum does not match")
            return TypeAdapter(cls).validate_json(json.dumps(facts), strict=True)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"The folder of a probe or fine-tuned model must contain an unchanged {path.name}. Received: {path}: "
                f"{error}. Restore it, or remove it and repeat the training command."
            ) from error

    def write(self, path: Path) -> None:
        """Write model.json with its checksum."""
        values = {**vars(self), "model": self.model.model_dump(mode="json")}
        values["sha256"] = sha256_of_facts(values)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_facts(folder: RunFolder, facts: ModelFacts) -> None:
    """Write model.json, or compare it with the one in the folder.

    Raises:
        UsageError: the run was started with other weights, images, labels or classes; all differences are listed.
    """
    path = folder.path / NAME
    before = ModelFacts.read(path) if path.exists() else facts
    if not before.train_labels_sha256:  # of an earlier version
        before = replace(before, train_labels_sha256=facts.train_labels_sha256)
    if changed := nested_diff(_fixed(before), _fixed(facts)):
        raise UsageError(
            f"A run resumes only with the weights, images and labels it was started with. {path} differs:\n"
            + "\n".join(f"  {key}: was {old}, now {new}" for key, (old, new) in changed.items())
            + "\nUse the same --model, images, labels and --subset, or another --run-dir or --fresh (the old run is "
            "kept)."
        )
    if folder.writer:
        facts.write(path)


def _fixed(facts: ModelFacts) -> dict[str, Any]:
    """Return what must not change during a run."""
    return {
        "probe": facts.how,
        "weights": facts.origin.get("sha256", facts.origin["weights"]),
        "architecture": facts.model.model_dump(mode="json"),
        "number of training images": facts.train_images,
        "SHA-256 of the training images' names": facts.train_sha256,
        "SHA-256 of the training images' labels": facts.train_labels_sha256,
        "classes": facts.class_names,
    }


def read_pretraining_recipe(run_dir: Path) -> Recipe:
    """Return the recipe of a pretraining run.

    Raises:
        UsageError: it is a probe or fine-tuned run; the message names the run to use instead.
    """
    recipe = load_any_recipe(run_dir / "config.yaml")
    if isinstance(recipe, Recipe):
        return recipe
    try:
        origin = ModelFacts.read(run_dir / NAME).origin
    except UsageError:
        origin = {}  # a damaged model.json is not the problem to report here
    source = origin.get("run") or origin.get("backbone")
    what = "probe" if recipe.kind == "probe" else "fine-tuned run"
    if "file" in origin and not source:  # a supervised network in one file
        raise UsageError(
            f"A pretraining run is needed here. Received: {run_dir}, a {what} that was imported from {origin['file']}. "
            "Import its backbone: swav-tf weights import --backbone-only."
        )
    raise UsageError(
        f"A pretraining run is needed here. Received: {run_dir}, a {what}. Use the pretraining run it was trained from"
        + (f", {source}" if source else "")
        + f", or, where an ONNX file suffices: swav-tf export {run_dir} --output DIR, then DIR/model-fp32.onnx."
    )
