"""The Tinker engine: LoRA on a Tinker-compatible training service, hosted or your own."""
