"""Weights of other libraries, read and written without them. The format is recognized by the tensors' names."""
