"""What a run costs before there is one: arithmetic, memory, links and hours. No TensorFlow."""
