"""What a run directory holds: records and checkpoints."""
