"""What may be said of measured times."""

import numpy as np
import pytest

from evaluate.benchmark.figures import (
    block_means,
    coefficient_of_variation,
    fixed_and_per_image,
    percentile_ms,
    relative_error,
    runs_needed,
)


# Bug caught: a p99 of a hundred runs, which is their greatest.
@pytest.mark.parametrize(("percentile", "needed"), [(50, 20), (90, 100), (95, 200), (99, 1000)])
def test_a_percentile_takes_ten_samples_beyond_it(percentile: int, needed: int) -> None:
    assert runs_needed(percentile) == needed
    samples = np.random.default_rng(percentile).gamma(2, 3, needed)
    assert percentile_ms(list(samples[1:]), percentile) is None
    found = percentile_ms(list(samples), percentile)
    assert found == pytest.approx(np.percentile(samples, percentile))
    assert np.sum(samples > found) >= 10


# Bugs caught: the standard deviation of the population, or of the wrong length.
def test_variation() -> None:
    samples = [1.0, 2.0, 4.0, 9.0]
    assert coefficient_of_variation(samples) == pytest.approx(np.std(samples, ddof=1) / 4)
    assert coefficient_of_variation([3.0]) == 0


def test_blocks_are_consecutive_and_hold_every_run() -> None:
    samples = list(np.random.default_rng(0).normal(10, 1, 103))
    blocks = block_means(samples, blocks=20)
    assert len(blocks) == 20
    assert blocks[0] == pytest.approx(np.mean(samples[:6]))  # 103 = 3 of 6 and 17 of 5
    assert blocks[-1] == pytest.approx(np.mean(samples[-5:]))
    assert block_means([1.0, 2.0]) == [1.0, 2.0]


# Bug caught: noise that is called smaller than it is, so that chance looks like a difference.
def test_the_error_is_that_of_repeated_measurements() -> None:
    draw = np.random.default_rng(3)

    def measured() -> list[list[float]]:
        """Three processes, each off by 3 %, of 20 blocks that vary by 5 %."""
        return [list(10 * (1 + draw.normal(0, 0.03)) * (1 + draw.normal(0, 0.05, 20))) for _ in range(3)]

    many = [measured() for _ in range(400)]
    truth = np.std([np.median([np.median(blocks) for blocks in rounds]) for rounds in many]) / 10
    said = np.sqrt(np.mean([relative_error(rounds, between=0.5) ** 2 for rounds in many]))
    assert truth * 0.85 <= said <= truth * 1.3


def test_one_process_is_given_the_assumed_difference_between_processes() -> None:
    steady = [[10.0] * 20]
    assert relative_error(steady, between=0.02) == pytest.approx(0.02)
    assert relative_error([*steady, *steady], between=0.02) == 0


# Bug caught: a fit that only the large batches decide, or a negative cost.
def test_fixed_and_per_image_cost() -> None:
    batches = [1, 8, 32, 128]
    assert fixed_and_per_image(batches, [2 + 0.5 * b for b in batches]) == pytest.approx((2, 0.5))
    fixed, each = fixed_and_per_image(batches, [0.5 * b * (1 + b / 500) for b in batches])
    assert fixed == 0
    assert 0.5 < each < 0.65
    fixed, each = fixed_and_per_image([1, 8], [3.0, 2.9])
    assert each == 0
    assert 2.9 <= fixed <= 3
    assert fixed_and_per_image([8, 8], [1.0, 1.1]) is None
