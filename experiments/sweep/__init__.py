"""Sweeps: the runs that a file plans, their results, how they are launched."""
