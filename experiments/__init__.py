"""One runnable per verb: `python -m experiments.train`, and its neighbours."""
