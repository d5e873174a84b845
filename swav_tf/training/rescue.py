"""Rescue a run that collapses: start it again with the next remedy.

attempts.json in the run folder lists the attempts that collapsed, so that an interrupted run knows which one it is. The
folder of each of them is moved into `previous-N/`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from swav_tf.method.swav import SwAV
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.log import log
from swav_tf.recipe.auto import Remedy
from swav_tf.recipe.files import load_recipe, recipe_of
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import ATTEMPTS, RunFolder
from swav_tf.training.callbacks import Collapsed
from swav_tf.training.job import Result
from swav_tf.training.pretrain import pretrain

MOST_RESCUES: Final = 3


def pretrain_with_rescue(
    recipe: Recipe, *, run_dir: Path, fresh: bool = False, keep: Collection[str] = (), **options: Any
) -> Result[SwAV]:
    """Pretrain on one machine; after a collapse start over with the next remedy, at most MOST_RESCUES times.

    Args:
        recipe: of the first attempt, or of the attempt in the folder.
        run_dir: as for `pretrain`.
        fresh: start over with the first attempt.
        keep: settings such as `model.prototypes` that no remedy may change.
        **options: further arguments of `pretrain`.
    """
    path, config = run_dir / ATTEMPTS, run_dir / "config.yaml"
    attempts: list[dict[str, Any]] = []
    if path.exists() and not fresh:
        attempts = json.loads(path.read_text())
        # Interrupted between the record of a collapse and the start of the next attempt?
        if config.exists() and _remedied(saved := load_recipe(config), attempts) != saved:
            _set_aside(run_dir)
    while True:
        known = {_setting(override) for override in (*_overrides(attempts), *keep)}
        rescue = functools.partial(_next_remedy, known) if len(attempts) < MOST_RESCUES else None
        try:
            remedied = _remedied(recipe, attempts)
            result = pretrain(remedied, run_dir=run_dir, fresh=fresh, rescue=rescue, **options)
        except Collapsed as collapse:
            attempts.append(collapse.figures | {"overrides": list(collapse.remedy.overrides)})
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(attempts, indent=1) + "\n")
            log.warning(
                "%s Rescue %s of at most %s: the run starts over with %s.",
                *(collapse, len(attempts), MOST_RESCUES, collapse.remedy.text),
            )
            _set_aside(run_dir)
            fresh = False
            continue
        if attempts:
            result.summary["attempts"] = attempts
            RunFolder(run_dir).write_summary(result.summary)
        return result


def _set_aside(run_dir: Path) -> None:
    with RunFolder(run_dir) as folder:
        folder.set_aside(attempts=False)


def _setting(override: str) -> str:
    path = override.split("=", 1)[0].strip()
    return path.replace("frozen_epochs", "frozen_steps")  # two forms of one setting


def _next_remedy(known: Collection[str], found: Sequence[Remedy]) -> Remedy | None:
    """Return the first remedy that changes none of these settings, nor one below (`crops.0.scale` for `crops`)."""
    starts = tuple(f"{setting}." for setting in known)
    for remedy in found:
        if not any(f"{_setting(override)}.".startswith(starts) for override in remedy.overrides):
            return remedy
    return None


def _overrides(attempts: Sequence[dict[str, Any]]) -> list[str]:
    return [override for attempt in attempts for override in attempt["overrides"]]


def _remedied(recipe: Recipe, attempts: Sequence[dict[str, Any]]) -> Recipe:
    """Return a recipe with the remedies of all collapsed attempts; they are values, not changes: twice is once."""
    label = "the remedied recipe"
    remedied = recipe_of(recipe.model_dump(mode="json"), _overrides(attempts), label=label)
    assert isinstance(remedied, Recipe)
    return remedied
