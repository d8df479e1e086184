"""Training: settings, assembly, compiled programs, the loop."""
