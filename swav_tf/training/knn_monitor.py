"""What the features are worth during pretraining, compared with what costs nothing: initial weights and raw pixels.

A falling loss is not learning: features can be worse than those of a random initialization while the loss is far below
ln K. With labels, k-NN accuracy shows it; without, whether two views of an image find each other.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import cv2
import keras
import numpy as np
import numpy.typing as npt

from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.image_source import ImageSource
from swav_tf.data.labels import renumbered
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.sources import open_source, read_image
from swav_tf.data.views import refuse, stack_views, view_batches
from swav_tf.knn import (
    BASELINES,
    VIEWS,
    baselines_of,
    comparison,
    find_neighbors,
    knn_accuracy,
    view_comparison,
)
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.method.swav import SwAV
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log, log_once
from swav_tf.plumbing.names import counted
from swav_tf.recipe.data import SPLIT_KINDS, Data
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.position import Logs

if TYPE_CHECKING:
    from swav_tf.training.job import Job

# To which views are reduced as raw pixels: 224 x 224 would need 12 GB for 20,000 images.
PIXELS_SIDE: Final = 32
Indices = npt.NDArray[np.int64]
VIEWS_EPOCH: Final = 2**32  # of the random numbers of views: no epoch of a run has them
EARLY: Final = 0.1  # share of a run after which features are measured in any case


def evaluators(job: Job, recipe: Recipe, source: ImageSource) -> list[keras.callbacks.Callback]:
    """Return what judges the features during a run: by labels where there are some, else by views."""
    if recipe.monitor.knn_every_epochs:
        return [KNNEvaluator(job, recipe, source)]
    return [ViewEvaluator(job, recipe, source)] if recipe.monitor.view_images else []


def early_epoch(recipe: Recipe, steps_per_epoch: int) -> int | None:
    """Return the epoch, from 1, at whose end features are first measured in any case; None in a short run.

    It is past a tenth of the run, and a full epoch past the freeze and the warm-up: before, a model that learns well
    is often no better than its initial weights.
    """
    epochs = recipe.train.epochs
    frozen = math.ceil(recipe.frozen_steps(steps_per_epoch) / steps_per_epoch)
    epoch = max(math.ceil(EARLY * epochs), frozen + 1, recipe.optimizer.warmup_epochs + 1)
    return epoch if epochs * EARLY >= 1 and epoch < epochs else None


class _Evaluator(keras.callbacks.Callback):
    """Measure features of the model in training, on the chief while the other workers wait."""

    model: SwAV

    def __init__(self, job: Job, recipe: Recipe, source: ImageSource, *, held_out: bool) -> None:
        super().__init__()
        self.job, self.recipe = job, recipe
        self.source = self.query_source = source
        if held_out:
            self.query_source = open_source(recipe.data, validation=True)

    @property
    def _is_early(self) -> bool:
        position = self.job.position
        epoch = early_epoch(self.recipe, position.steps_per_epoch)
        return position.at_epoch_end and position.epoch + 1 == epoch

    def _forget_others(self, kind: str, keys: Iterable[str], images: Indices, *measurement: Any) -> None:
        """Forget the checkpoint's baselines if they are of other images or settings, which may change on resume."""
        names = [self.query_source.image_name(int(index)) for index in images]
        identity = hashlib.sha256(repr((names, *measurement)).encode()).hexdigest()
        found = self.job.position.validation
        if found.setdefault(f"{kind}_sha256", identity) != identity:  # earlier versions recorded none
            log.warning(
                "The images or settings of the evaluation changed since the checkpoint. Its baselines are dropped, so "
                "the run will end without a verdict."
            )
            self._keep(kind, **dict.fromkeys(keys))
            found[f"{kind}_sha256"] = identity

    def _keep(self, kind: str, **figures: float | None) -> None:
        self.job.position.validation.update(figures)
        self.job.metrics.write(kind, figures)


class KNNEvaluator(_Evaluator):
    """Measure k-NN accuracy every `knn_every_epochs` epochs.

    Queries are the validation images, without any a fifth of the training images; at most `knn_images` of either
    are used, always the same.
    """

    def __init__(self, job: Job, recipe: Recipe, source: ImageSource) -> None:
        held_out = bool(recipe.data.validation_path or recipe.data.validation_split)
        super().__init__(job, recipe, source, held_out=held_out)
        limit, draw = recipe.monitor.knn_images, np.random.default_rng(recipe.train.seed)
        known = draw.permutation(np.flatnonzero(source.labels() >= 0))[:limit]
        if held_out:
            queries = draw.permutation(np.flatnonzero(self.query_source.labels() >= 0))[:limit]
        else:
            queries, known = np.split(known, [max(1, len(known) // 5)])
        self.known, self.queries = np.sort(known), np.sort(queries)
        max_share = recipe.data.max_bad_share
        self.bad_queries = BadImages(images=len(queries), max_share=max_share) if held_out else None
        self.labels, self.query_labels = source.labels(self.known), self.query_source.labels(self.queries)
        self.counted = len(self.queries)  # without those that cannot be read, once they have been tried
        if not (len(self.known) and len(self.queries)):
            raise DataError(
                "monitor.knn_every_epochs needs labeled images. Received: images without labels. "
                "Set it to 0, or use class folders, a list with labels, or data.labels=LIST."
            )
        if held_out:
            own, names = self.query_source.class_names, source.class_names
            if own or names:
                self.query_labels = renumbered(self.query_labels, own, names)
            if unknown := int((self.query_labels < 0).sum()):
                raise DataError(
                    "Every class of the validation images must exist in the training images. "
                    f"Received: {unknown:,} of {len(self.queries):,} with other classes."
                )

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Measure the initial weights and raw pixels when a run starts."""
        position, monitor = self.job.position, self.recipe.monitor
        labels = np.concatenate((self.query_labels, self.labels)).tolist()
        settings = monitor.knn_neighbours, monitor.knn_temperature
        self._forget_others("knn_baselines", BASELINES, self.queries, labels, *settings)
        if not position.step:  # later their figures are in the checkpoint
            with position.doing("k-NN"):
                initial = self._accuracy(partial(readable_features, self.model))
                pixels = self._accuracy(readable_pixels)
            self._keep("knn_baselines", knn_top1_initial=initial, knn_top1_pixels=pixels)
        if baselines := baselines_of(position.validation):
            log_once(  # the rest of an interrupted epoch is a training of its own
                logging.INFO,
                f"k-NN accuracy of {len(self.queries):,} images, by the votes of {len(self.known):,} training images; "
                f"without training: {baselines}",
            )

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Measure when an epoch that is due ends, early in the run, and at its end."""
        position, every = self.job.position, self.recipe.monitor.knn_every_epochs
        if not position.at_epoch_end:
            return
        if (position.epoch + 1) % every and not position.at_end and not self._is_early:
            return
        with position.doing("k-NN"):
            top1 = self._accuracy(partial(readable_features, self.model))
        self._keep("knn", knn_top1=top1)
        if top1 is not None:
            position.measured["k-NN"] = top1

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log what an early measurement and that at the end say."""
        position, found = self.job.position, self.job.position.validation
        if position.at_end:
            log.log(*verdict(found, self.counted))
        elif self._is_early and (lost := lost_to(found, self.counted, ["knn_top1_initial"])):
            log.warning(
                f"After {position.epoch + 1} of {self.recipe.train.epochs} epochs the features are not better than "
                f"{lost}. If this does not change, the run learns nothing useful."
            )

    def _accuracy(self, rows_of: Callable[..., tuple[np.ndarray, Indices]]) -> float | None:
        """Return the accuracy (0 to 1) by the rows that a function computes of images, None if there is none."""
        data, monitor = self.recipe.data, self.recipe.monitor
        known, read = rows_of(self.source, self.known, data, self.job.bad_images)
        tally = self.bad_queries or self.job.bad_images
        queries, asked = rows_of(self.query_source, self.queries, data, tally)
        if self.bad_queries and (bad := self.bad_queries.reasons):
            name, reason = next(iter(bad.items()))
            text = f"{counted(len(bad), 'validation image')} cannot be read, such as {name}: {reason}."
            log_once(logging.WARNING, f"{text} The k-NN evaluation leaves them out.")
        if not (len(known) and len(queries) and np.isfinite(known).all() and np.isfinite(queries).all()):
            return None  # `StopWhenDiverged` decides whether that ends the run
        self.counted = len(queries)
        labels = self.labels[np.isin(self.known, read)], self.query_labels[np.isin(self.queries, asked)]
        k, temperature = min(monitor.knn_neighbours, len(known)), monitor.knn_temperature
        return knn_accuracy(known, labels[0], queries, labels[1], k=k, temperature=temperature)


class ViewEvaluator(_Evaluator):
    """Measure without labels: the share of views whose nearest neighbor is the other view of the same image.

    The views are two large crops as in training, always the same; the mean of the features is subtracted. Compared with
    the initial weights, which see the same views, the figure follows accuracy (docs/results.md); it says nothing about
    runs with other crops.
    """

    def __init__(self, job: Job, recipe: Recipe, source: ImageSource) -> None:
        data = recipe.data
        # A split that this kind has not is left over from another recipe, and a reason to stop for k-NN only.
        held_out = bool(data.validation_path or (data.kind in SPLIT_KINDS and data.validation_split))
        super().__init__(job, recipe, source, held_out=held_out)
        order = np.random.default_rng(recipe.train.seed).permutation(len(self.query_source))
        self.images = np.sort(order[: recipe.monitor.view_images])
        self.views: tuple[np.ndarray, np.ndarray] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Draw the views, and measure the initial weights when a run starts."""
        if self.views is not None:
            return  # the rest of an interrupted epoch was a training of its own
        self._forget_others("views_baseline", VIEWS, self.images)
        if self.job.position.step and self.job.position.validation.get("view_retrieval_initial") is None:
            return  # without that figure later ones say nothing
        group = self.recipe.crops[0].model_copy(update={"count": 2})
        multicrop, seed, pairs = MultiCrop((group,), self.recipe.augment), self.recipe.train.seed, []
        for index in map(int, self.images):
            with suppress(UndecodableImage, OSError):  # training reports and counts them
                image = read_image(self.query_source, index)
                pairs += multicrop(image, seed=seed, epoch=VIEWS_EPOCH, index=index)
        if len(pairs) < 2:
            return
        one, other = np.stack(pairs, axis=1)
        self.views = one, other
        if not self.job.position.step:  # later the figure is in the checkpoint
            self._keep("views_baseline", view_retrieval_initial=self._retrieval(), view_images=len(pairs))

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Measure early in the run, and at its end."""
        if self.views is not None and (self._is_early or self.job.position.at_end):
            self._keep("views", view_retrieval=self._retrieval(), view_images=len(self.views[0]))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log what the measurements say."""
        position, found = self.job.position, self.job.position.validation
        if self.views is None or not (self._is_early or position.at_end):
            return
        level, text = view_verdict(found, at_end=position.at_end)
        log.log(level, f"Epoch {position.epoch + 1} of {self.recipe.train.epochs}: {text}")

    def _retrieval(self) -> float | None:
        assert self.views is not None
        one, other = (
            np.concatenate(
                [self.model.features(views[i : i + 128]).numpy() for i in range(0, len(views), 128)]
            )
            for views in self.views
        )
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return None
        mean = (one.mean(axis=0) + other.mean(axis=0)) / 2  # pooled features are all alike
        one, other = one - mean, other - mean
        nearest = [find_neighbors(*pair, k=1).indices[:, 0] for pair in ((one, other), (other, one))]
        return float(np.mean(np.stack(nearest) == np.arange(len(one))))


def view_verdict(found: Mapping[str, Any], *, at_end: bool) -> tuple[int, str]:
    """Return level and text of the verdict by retrieval of views."""
    what = view_comparison(found)
    if found.get("view_retrieval_initial") is None:
        return logging.INFO, f"{what}."
    if exceeds(found["view_retrieval"] or 0.0, found["view_retrieval_initial"], int(found["view_images"])):
        return logging.INFO, f"{what}: the features are better than the initial weights."
    learned = "was learned" if at_end else "will have been learned if this does not change"
    return logging.WARNING, (
        f"{what}: the features are not clearly better than the initial weights, regardless of the loss. Nothing useful "
        f"{learned}. Try larger crop scales, a lower rate, more epochs or more images, or start from released weights "
        "(--weights)."
    )


def readable_features(
    model: ReplicatedModel,
    source: ImageSource,
    indices: Sequence[int] | Indices,
    settings: Data,
    tally: BadImages | None = None,
    *,
    batch_size: int = 128,
) -> tuple[np.ndarray, Indices]:
    """Return the features (n, F), float32, of the images that can be read, and their indices.

    They are those of the evaluation view in inference mode. `tally` counts the other images; without it, an image that
    cannot be read is an error.
    """
    length = model.backbone.output_shape[-1]
    return _rows(
        lambda views: model.features(views).numpy(),
        length, source, indices, settings, tally, batch_size=batch_size,
    )  # fmt: skip


def readable_pixels(
    source: ImageSource, indices: Indices, settings: Data, tally: BadImages | None = None
) -> tuple[np.ndarray, Indices]:
    """Return views as vectors, float32 (n, s * s * 3), s at most PIXELS_SIDE, in the way of `readable_features`."""
    side = min(PIXELS_SIDE, settings.evaluation.crop)

    def pixels(views: np.ndarray) -> np.ndarray:
        small = [cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA) for view in views]
        return np.stack(small).reshape(len(views), -1)

    return _rows(pixels, side * side * 3, source, indices, settings, tally, batch_size=128)


def _rows(
    compute: Callable[[np.ndarray], np.ndarray],
    length: int,
    source: ImageSource,
    indices: Sequence[int] | Indices,
    settings: Data,
    tally: BadImages | None,
    batch_size: int,
) -> tuple[np.ndarray, Indices]:
    """Return rows (n, length), float32, that a function computes from batches of views, and the images' indices."""
    # Filled in place: a list of parts and its concatenation would need twice the memory.
    rows, read = np.empty((len(indices), length), np.float32), list[int]()
    view, threads, unreadable = settings.evaluation, settings.threads, refuse if tally is None else tally.bad
    for batch in view_batches(source, indices, view, batch_size, threads=threads, unreadable=unreadable):
        rows[len(read) : len(read) + len(batch)] = compute(stack_views(batch))
        read += [image.index for image in batch]
        if tally is not None:
            for _ in batch:
                tally.good()
    return rows[: len(read)], np.asarray(read, np.int64)


def lost_to(found: dict[str, Any], queries: int, baselines: Iterable[str] = BASELINES) -> str:
    """Return the baselines that the features do not exceed by two standard errors of the difference; "" if none."""
    top1 = found["knn_top1"] or 0.0
    measured = [key for key in baselines if found.get(key) is not None]
    return " and ".join(BASELINES[key] for key in measured if not exceeds(top1, found[key], queries))


def exceeds(share: float, base: float, count: int) -> bool:
    """Return whether a share of `count` images exceeds another by two standard errors of the difference."""
    return share > base + 2 * math.sqrt((share * (1 - share) + base * (1 - base)) / count)


def verdict(found: dict[str, Any], queries: int) -> tuple[int, str]:
    """Return level and text of the verdict by k-NN accuracy at the end of a run."""
    if not baselines_of(found):
        started = "by an earlier version, or with other images or settings of the evaluation"
        return logging.INFO, f"The k-NN accuracy has no baselines: the run was started {started}."
    by = f"{comparison(found)} of {queries:,} images: the features are"
    if not (lost := lost_to(found, queries)):
        return logging.INFO, f"{by} better than {' and '.join(BASELINES.values())}."
    return logging.WARNING, (
        f"{by} not clearly better than {lost}, regardless of the loss: little was learned that helps to distinguish "
        "these classes. Train for more epochs or on more images, or start from released weights (--weights)."
    )
