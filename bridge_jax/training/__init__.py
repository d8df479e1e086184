"""Training: settings, assembly of a run, compiled programs, the loop."""
