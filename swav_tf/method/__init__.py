"""The method: swapped prediction with Sinkhorn codes (arXiv 2006.09882)."""
