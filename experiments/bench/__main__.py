"""`python -m experiments.bench CASE`: see command.py."""

from experiments.bench import command

command.start()
