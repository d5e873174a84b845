"""What bounds a recipe on this machine: input, host, device or communication. Nothing is written."""
