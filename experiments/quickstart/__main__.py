"""`python -m experiments.quickstart`: see command.py."""

from experiments.quickstart import command

command.start()
