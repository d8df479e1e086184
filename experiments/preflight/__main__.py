"""`python -m experiments.preflight --config=FILE:METHOD --workdir=DIR`: see command.py."""

from experiments.preflight import command

command.start()
