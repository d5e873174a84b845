"""Training: optimiser, schedule, strategy, checkpoints, diagnostics, the main job."""
