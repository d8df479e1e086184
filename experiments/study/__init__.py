"""The study of cooperation: sweeps, tables, figures."""
