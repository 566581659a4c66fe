"""Executors run a study: with worker processes on this machine, or on a Ray cluster."""
