"""The torch engine: any Hugging Face pair on this machine, CPU or GPU."""
