"""Where runs are executed: worker processes on this machine, or a Ray cluster."""
