"""Sweeps: each file lists the runs of one comparison."""
