"""The bundled recipes: one YAML file each, also found by name in an installed package."""
