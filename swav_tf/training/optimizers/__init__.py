"""LARS, SGD, and the schedules of their rates."""
