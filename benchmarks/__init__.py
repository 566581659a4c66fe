"""Measurements of potstill itself; each prints its table and writes it as JSON."""
