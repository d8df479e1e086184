"""`python -m experiments.preflight`: see command.py."""
