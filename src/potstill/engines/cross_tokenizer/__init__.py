"""A teacher of another tokenizer: alignment of bytes, and the engine that translates."""
