"""General helpers that do not depend on SwAV: errors, files, names, system."""
