"""The ahead-of-time planner: memory and FLOP estimates of a config on a described topology."""
