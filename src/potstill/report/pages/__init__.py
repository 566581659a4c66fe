"""HTML pages: one file each, that works offline and runs no script but its own."""
