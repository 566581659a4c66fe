"""Training of one run: rollouts, objective, optimizer steps, checkpoints, evaluation, metering."""
