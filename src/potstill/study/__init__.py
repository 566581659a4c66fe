"""A study: its schema, its folder, its runs and where they are executed."""
