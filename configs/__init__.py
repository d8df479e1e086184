"""Experiment configs: Python files with get_config(arg); they import nothing but each other."""
