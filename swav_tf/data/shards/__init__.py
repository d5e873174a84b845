"""TFRecord shards: packed, indexed, read."""
