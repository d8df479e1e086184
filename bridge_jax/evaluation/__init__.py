"""Evaluation: scores with their errors, transcripts, comparisons."""
