"""Recipes: their settings, files, explanations and advice."""
