"""model.json of a probe's or fine-tuned model: architecture, normalisation, classes, whose weights. No TensorFlow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swav_tf.data.labels import LabelledData
from swav_tf.data.sources import fingerprint
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.files import kind_of, load_any_recipe
from swav_tf.recipe.pretraining import Model, Recipe
from swav_tf.runs.checkpoint import sha256_of_facts
from swav_tf.runs.folder import RunFolder

BY_SGD, BY_CACHE, BY_IMPORT = "sgd", "cached features", "imported"
NAME = "model.json"


@dataclass(frozen=True)
class ModelFacts:
    """What model.json holds.

    Attributes:
        model: architecture of the backbone.
        mean, std: of the channels of images in [0, 1].
        class_names: in the order of the classifier's outputs.
        how: `sgd`, `cached features` or `imported`.
        origin: whose weights the backbone began with.
        train_images: number of training images; 0: not known.
        train_sha256: of their names; empty: not known.
    """

    model: Model
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    how: str
    origin: dict[str, Any]
    train_images: int
    train_sha256: str

    @classmethod
    def of(cls, pretrained: Recipe, origin: dict[str, Any], data: LabelledData, how: str) -> ModelFacts:
        """Those of a run that begins.

        Args:
            pretrained: recipe of the backbone.
            origin: whose weights it has.
            data: what is trained on.
            how: a word of this module.
        """
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
        )

    @classmethod
    def read(cls, path: Path) -> ModelFacts:
        """Those of a run that is there.

        Raises:
            UsageError: the file is missing, edited or damaged.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            # An earlier version's has no checksum.
            if told.pop("sha256", None) not in (None, sha256_of_facts(told)):
                raise ValueError("it was edited or damaged, for its checksum is another")
            model = Model.model_validate_json(json.dumps(told.pop("model")), strict=True)
            lists: dict[str, Any] = {key: tuple(told.pop(key)) for key in ("mean", "std", "class_names")}
            return cls(model=model, **lists, **told)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"A probe's or fine-tuned model's folder must hold {path.name} as it was written. Received: {path}: "
                f"{error}. Put it back; or remove it, and give the command that trained the model once more."
            ) from error

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        values = {**vars(self), "model": self.model.model_dump(mode="json")}
        values["sha256"] = sha256_of_facts(values)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_facts(folder: RunFolder, facts: ModelFacts) -> None:
    """Writes model.json, or holds it against the one that is there.

    Raises:
        UsageError: the run began with other weights, images or classes; all differences are listed.
    """
    path = folder.path / NAME
    if path.exists():
        before, now = _compared(ModelFacts.read(path)), _compared(facts)
        differences = [
            f"  {key}: was {before[key]}, now {now[key]}" for key in now if before[key] != now[key]
        ]
        if differences:
            raise UsageError(
                f"A run goes on only with what it was started with. {path} differs:\n"
                + "\n".join(differences)
                + "\nGive the same --model, images and --subset, another --run-dir, or --fresh (the old run is kept)."
            )
    if folder.writer:
        facts.write(path)


def read_pretraining_recipe(run_dir: Path) -> Recipe:
    """The recipe of a pretraining run.

    Raises:
        UsageError: it is a probe or a fine-tuned run: told with it is what to give instead.
        RecipeError: config.yaml is wrong.
    """
    recipe = load_any_recipe(run_dir / "config.yaml")
    if isinstance(recipe, Recipe):
        return recipe
    try:
        origin = ModelFacts.read(run_dir / NAME).origin
    except UsageError:
        origin = {}  # a damaged model.json is not what is wrong here
    made_from = origin.get("run") or origin.get("backbone")
    if kind_of(recipe) == "probe":
        what, instead = (
            "a probe",
            "A probe leaves the features of its pretraining run as they are: give that run",
        )
    else:
        what, instead = "a fine-tuned run", "Give the pretraining run that it was made from"
    raise UsageError(
        f"A pretraining run is needed here. Received: {run_dir}, {what}. {instead}"
        + (f", {made_from}." if made_from else ".")
        + f" Or `swav-tf export {run_dir} --output DIR`, and give DIR/model-fp32.onnx where an ONNX file will do."
    )


def _compared(facts: ModelFacts) -> dict[str, Any]:
    origin = facts.origin
    return {
        "probe": facts.how,
        "weights": origin.get("sha256", origin["weights"]),
        "architecture": facts.model.model_dump(mode="json"),
        "number of training images": facts.train_images,
        "SHA-256 of the training images' names": facts.train_sha256,
        "classes": facts.class_names,
    }
