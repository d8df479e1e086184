"""`python -m experiments.sweep`: see command.py."""

from experiments.sweep import command

command.start()
