"""Widely used helpers that know nothing of SwAV: errors, files, names, system."""
