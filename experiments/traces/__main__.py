"""`python -m experiments.traces`: see command.py."""

from experiments.traces import command

command.start()
