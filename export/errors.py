"""What an export refuses to write."""

from __future__ import annotations

from swav_tf.errors import SwavError


class ExportError(SwavError):
    """The graph cannot be exported, or does not compute what Keras computes."""
