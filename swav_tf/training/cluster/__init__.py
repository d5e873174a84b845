"""Several devices and machines: the strategy, how workers meet, and how they watch each other."""
