"""Where models live: the protocol of an engine, the engines, and the embedded pairs."""
