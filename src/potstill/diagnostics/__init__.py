"""Diagnostics: named faults, pre-flight checks, the monitor of a run, and the diagnosis of runs."""
