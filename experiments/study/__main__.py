"""`python -m experiments.study`: see command.py."""

from experiments.study import command

command.start()
