"""Whether features may be compared: only those of one model, and of images that it was shown in one way."""

from __future__ import annotations

from swav_tf.errors import UsageError


def check_same_model(
    one: dict[str, object], other: dict[str, object], one_name: str, other_name: str
) -> None:
    """Refuses to compare features of different models or views; what a file does not tell is not asked.

    Raises:
        UsageError: weights or view differ.
    """
    weights = [_weights(facts) for facts in (one, other)]
    if None not in weights and weights[0] != weights[1]:
        raise UsageError(
            f"Only features of one model can be compared. Received: {one_name} of weights {weights[0]}..., "
            f"{other_name} of weights {weights[1]}...: other weights, or another step of the training."
        )
    views = one.get("view"), other.get("view")
    if None not in views and views[0] != views[1]:
        raise UsageError(
            f"Only features of one view of images can be compared. Received: {one_name} with {views[0]}, "
            f"{other_name} with {views[1]}."
        )


def _weights(facts: dict[str, object]) -> str | None:
    model = facts.get("model")
    return str(model["weights_sha256"])[:12] if isinstance(model, dict) else None
