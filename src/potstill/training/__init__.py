"""Training: who writes, what is trained on, one optimizer step, evaluation, metering."""
