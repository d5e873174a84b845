"""The largest batch that fits a device, by measuring the memory of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.profile.fixed_crops import with_batch
from swav_tf.training.profile.memory import Peak, available_megabytes, measure_peak

MOST = 2**15  # images of one device; no search goes on beyond
PRECISION = 16  # the largest batch is found to 1/16 of itself


@dataclass(frozen=True)
class LargestBatch:
    """Images that a device computes at once."""

    images: int
    estimated: bool  # from a line through two measurements; else found by trying


def find_largest_batch(recipe: Recipe, peak: Peak, *, tell: Callable[[str], None]) -> LargestBatch | None:
    """The most images that one device computes at once; on a CPU by a line, on a GPU by trying.

    Args:
        recipe: its replicas, parts and queue stay as they are.
        peak: of the recipe as it is.
        tell: is told what is tried.

    Returns:
        None where the memory of this machine is not told.
    """
    shares = peak.replicas * recipe.train.accumulation_steps
    now = recipe.train.batch_size // shares

    def of(images: int) -> Peak:
        tell(f"  {images} images on each device ...")
        return measure_peak(
            with_batch(recipe, images * shares, accumulation_steps=recipe.train.accumulation_steps)
        )

    if peak.on_gpu:
        return LargestBatch(largest_fitting(lambda images: of(images).fits, start=now), estimated=False)
    available = available_megabytes()
    if available is None:
        return None
    other = now // 2 if now >= 4 else 2 * now
    second = of(other)
    if not (peak.fits and second.fits):
        return LargestBatch(other if second.fits else 0, estimated=True)
    smaller, larger = sorted([(now, peak.peak_mb), (other, second.peak_mb)])
    try:
        images = estimated_largest(smaller, larger, available_mb=available)
    except ValueError:
        return None  # so small that the noise is larger: no line
    return LargestBatch(images, estimated=True)


def largest_fitting(fits: Callable[[int], bool], *, start: int, most: int = MOST) -> int:
    """The largest number that fits, to 1/PRECISION of itself: doubled until one does not, then bisected.

    Args:
        fits: whether a number does; what is larger than one that does not fit does not either.
        start: is tried first, >= 1.
        most: no number beyond is tried.

    Returns:
        0 if not even 1 fits.
    """
    good, bad, trial = 0, most + 1, min(start, most)
    while bad - good > max(1, good // PRECISION):
        if fits(trial):
            good = trial
        else:
            bad = trial
        trial = min(2 * good, most) if bad > most and good < most else (good + bad) // 2
        if trial == good:
            break
    return good


def estimated_largest(smaller: tuple[int, float], larger: tuple[int, float], *, available_mb: float) -> int:
    """Images that fit by the line through two peaks, (images, MB).

    Raises:
        ValueError: they are of as many images, or memory does not grow with them.
    """
    per_image = (larger[1] - smaller[1]) / (larger[0] - smaller[0]) if larger[0] != smaller[0] else 0.0
    if per_image <= 0:
        raise ValueError(f"memory must grow with the batch; got {smaller} and {larger}")
    fixed = smaller[1] - per_image * smaller[0]
    return max(0, int((available_mb - fixed) // per_image))
