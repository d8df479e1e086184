"""`python -m experiments.methods`: see command.py."""

from experiments.methods import command

command.start()
