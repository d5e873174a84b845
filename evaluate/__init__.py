"""What the features are worth. No TensorFlow."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.backends import open_model

__all__ = ["open_model"]


def __getattr__(name: str) -> Any:
    if name != "open_model":
        raise AttributeError(f"module 'evaluate' has no attribute {name!r}; it has open_model")
    from evaluate.backends import open_model  # on first use: `import evaluate.feature_file` needs no decoder

    return open_model
