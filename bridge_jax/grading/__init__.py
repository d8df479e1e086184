"""Grading of completions, in pure Python: nothing here imports jax."""
