"""Folders as they should not be: shared by two runs, read-only, out of time, crowded, with odd names, full of links."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial

from faults.folders.clock import clock_jumps
from faults.folders.crowd import CROWD, crowd
from faults.folders.ground import Body, Ground
from faults.folders.links import links
from faults.folders.odd_names import odd_names
from faults.folders.read_only import read_only_inputs, read_only_outputs
from faults.folders.shards import damaged_shards, index_elsewhere
from faults.folders.two_at_once import two_at_once
from faults.jobs import classifier, export, features, pretrain, shard
from faults.trial import Plan, Trial, not_judged, shortened


def run(plan: Plan) -> Iterator[Trial]:
    """The trials in turn; a number beyond the last begins them again with other random numbers."""
    trials = list(_trials(Ground(plan)))
    for number in plan.numbers:
        what, trial = trials[number % len(trials)]
        folder = plan.folder / f"folder-{number}"
        folder.mkdir()
        try:
            outcome, finding = trial(folder, plan.draw(number))
        except Exception as error:  # no trial may lose those of the others
            outcome, finding = "", not_judged(error)
        yield Trial(number, what, "broken" if finding else outcome, finding=shortened(finding, 1500))
        shutil.rmtree(folder, ignore_errors=True)


def _trials(ground: Ground) -> Iterator[tuple[str, Body]]:
    made = ground.made
    twice = (pretrain(), classifier("probe", made.run), features(made.run, ".npy"), shard(made.images))
    for job in (*twice, export(made.run, "fp32")):
        yield f"two at once in one folder: {job.name}", partial(two_at_once, ground, job)
    yield "read-only folder for what is written", lambda f, _: read_only_outputs(ground, f)
    yield "read-only images and model", lambda f, _: read_only_inputs(ground, f)
    for job in (pretrain(), features(made.run, ".npz"), shard(made.images)):
        yield f"clock jumps, killed between: {job.name}", partial(clock_jumps, ground, job)
    yield f"{CROWD:,} files in a folder", lambda f, _: crowd(ground, f)
    yield "odd file names", lambda f, _: odd_names(ground, f)
    yield "links", lambda f, _: links(ground, f)
    yield "a shard index that names files elsewhere", lambda f, _: index_elsewhere(ground, f)
    yield "damaged shards and index", partial(damaged_shards, ground)
