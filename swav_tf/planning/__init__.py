"""Estimate the cost of a run by arithmetic: FLOPs, memory, links and hours. No TensorFlow."""
