"""The error of this package."""

from swav_tf.errors import SwavError


class WeightsError(SwavError):
    """A file of weights is damaged, unsafe, of an unknown kind, or does not fit; the message says which."""
