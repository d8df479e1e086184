"""Configuration: schema, batch sizes, range checks."""
