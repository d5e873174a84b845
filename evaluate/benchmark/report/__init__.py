"""A benchmark as one HTML page: `document` has its sections, which `speed`, `tables` and `definitions` write."""
