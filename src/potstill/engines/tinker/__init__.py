"""The Tinker engine: LoRA on a training service, hosted or your own."""
