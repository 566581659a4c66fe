"""A study is a grid of runs: its schema, its folder, its runs, executors and experiment tracking.

`schema` defines the settings, `loading` reads them and `validation` checks them. `run` executes
one run, `storage` is the folder, `executors` distribute the runs, `tracking` exports the metrics.
"""
