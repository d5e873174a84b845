"""Probes and fine-tuning: the classifier on the backbone, its training, validation and folder."""
