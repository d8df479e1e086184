"""Demonstrations from public data sets."""
