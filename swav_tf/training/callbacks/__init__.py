"""Keras callbacks: what happens around the steps."""
