"""A plain warning when nothing is learnt: SwAV's commonest failure is a loss that stays at ln K."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras

from swav_tf.recipe import Recipe
from swav_tf.training.callbacks.position import Position

ENOUGH_STEPS = 50  # that the smoothed loss is made of, so that a run which went on is not judged by its first
REMEDIES = (
    "a smaller method.epsilon (0.05 -> 0.03)",
    "a longer freeze (method.prototypes_frozen_steps: 1 to 3 epochs)",
    "fewer prototypes (model.prototypes: about ten a class), or a queue",
    "softer jitter (augment.jitter.*) and crops that keep more of the image",
    "another optimizer.peak_learning_rate",
)


class WarnOfCollapse(keras.callbacks.Callback):
    """Warns once if the loss is still at ln K so many steps after the prototypes were unfrozen."""

    def __init__(self, recipe: Recipe, position: Position, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.position, self.tell = position, tell
        self.ln_k = math.log(recipe.model.prototypes)
        wait = recipe.method.prototypes_frozen_steps + recipe.monitor.collapse_after_steps
        self.look_at = min(wait, position.total_steps)
        self.enough = min(ENOUGH_STEPS, position.total_steps)
        self.seen = 0
        self.looked = False
        self.loss: float | None = None
        self.spread = 1.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Looks once, at a smoothed loss."""
        logs = logs or {}
        if logs["finite"]:
            self.loss = logs["loss"] if self.loss is None else 0.98 * self.loss + 0.02 * logs["loss"]
            self.spread = logs["projection_spread"]
            self.seen += 1
        if self.looked or self.loss is None or self.position.step < self.look_at or self.seen < self.enough:
            return
        self.looked = True
        # Knowing nothing costs ln K; a twentieth below is more than noise and less than learning.
        if self.loss > 0.95 * self.ln_k:
            self.tell(
                f"The loss is {self.loss:.3f} after {self.position.step} steps, and ln K is {self.ln_k:.3f}: "
                f"nothing is learnt yet (projection spread {self.spread:.3f}; 0 is full collapse). "
                "Remedies in order:\n  " + "\n  ".join(f"{i}. {text}" for i, text in enumerate(REMEDIES, 1))
            )
