"""How fast exported files and runs are, on what machine, and whether they are still right."""
