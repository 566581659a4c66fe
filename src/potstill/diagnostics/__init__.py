"""Diagnosis: named faults, the checks before a run, the monitor during it, and what went wrong."""
