"""`python -m experiments.reproduce`: see command.py."""

from experiments.reproduce import command

command.start()
