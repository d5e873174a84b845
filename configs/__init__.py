"""The bundled recipes: one YAML file each, found by name from an installed package too."""
