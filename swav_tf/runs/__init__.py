"""Run folders and what they contain. No TensorFlow."""
