"""Resume a run: refuse what must not change, and log what did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.files import AnyRecipe
from swav_tf.runs.checkpoint import IMPORTED, Checkpoint
from swav_tf.runs.folder import changes
from swav_tf.training.cluster import Topology


def check_resumable(checkpoint: Checkpoint, images: Mapping[str, Any], contents_sha256: str) -> None:
    """Check that a checkpoint is of a run on these images. Images of other contents are only reported.

    Raises:
        UsageError: it is an import, or the run was started with other images.
    """
    run_dir = checkpoint.path.parents[1]
    if IMPORTED in checkpoint.facts:
        raise UsageError(
            f"{run_dir} contains imported weights ({checkpoint.facts[IMPORTED]['file']}), not a run to resume. To "
            f"train from them: swav-tf pretrain ... --weights {run_dir} --run-dir NEW."
        )
    before = checkpoint.facts["images"]
    if before != images:
        same_number = before["images"] == images["images"]
        raise UsageError(
            "A run resumes only with the images it was started with: their order and the schedule depend on them. "
            f"It was started with {before['images']:,} images. Received: {images['images']:,}"
            f"{' with other names' if same_number else ''}. Use the original images, another --run-dir, or --fresh "
            "(the old run is kept)."
        )
    before_sha256 = checkpoint.facts.get("contents_sha256", contents_sha256)  # older versions recorded none
    if contents_sha256 and contents_sha256 != before_sha256:
        log.warning(
            "Sizes or modification times of image files have changed since the run was last saved. If pictures were "
            "replaced, training continues on the new ones."
        )


def log_config_changes(
    checkpoint: Checkpoint, model: ReplicatedModel, *, recipe: AnyRecipe, team: Topology
) -> None:
    """Log where a run resumes, and what changed since the checkpoint was written."""
    before, batch_size = checkpoint.facts["recipe"], recipe.train.batch_size
    replicas = checkpoint.facts.get("replicas", team.replicas)
    log.info("Resuming from step %s (%s).", checkpoint.step, checkpoint.path)
    if replicas != team.replicas:
        log.info(
            f"Resuming with {team.replicas} instead of {replicas} replica(s): the batch size stays {batch_size}, "
            f"{batch_size // team.replicas} images each."
        )
    if changed := changes(before, recipe, free=True):
        log.info("Settings changed since the checkpoint:\n%s", "\n".join(changed))
    if (earlier := before["train"]["epochs"]) < recipe.train.epochs:
        log.warning(
            f"The run now has {recipe.train.epochs} epochs instead of {earlier}. The learning rate follows the longer "
            f"schedule from step {checkpoint.step} on, so it rises at once; the result differs from that of a run "
            f"started with {recipe.train.epochs} epochs."
        )
    then = _batch_norm_images(before, replicas)
    now = _batch_norm_images(recipe.model_dump(mode="json"), team.replicas)
    if model.backbone.trainable and then != now:
        log.warning(
            f"Batch-norm statistics now cover {now} images instead of {then}; results will differ slightly."
        )


def _batch_norm_images(recipe: Mapping[str, Any], replicas: int) -> int:
    """Return the number of images over which batch normalization averages in training mode."""
    train, model = recipe["train"], recipe.get("model")
    images = int(train["batch_size"]) // int(train["accumulation_steps"])
    # Fine-tuning has no such setting and always synchronizes.
    if model and not model["batch_norm"]["synchronised"]:
        return images // replicas
    return images
