"""Devices and processes: mesh, sharding rules, several hosts."""
