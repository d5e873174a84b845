"""Run some steps of a recipe and report what bounds them."""
