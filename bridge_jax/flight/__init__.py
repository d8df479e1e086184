"""The flight plan: what a run's programs take on devices that are only described; compiled memory, counted work."""
