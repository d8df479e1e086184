"""Ahead-of-time plans: memory and FLOP estimates of a config on a described topology."""
