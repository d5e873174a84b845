"""Models for machines without TensorFlow, with the proof that their features are the same."""
