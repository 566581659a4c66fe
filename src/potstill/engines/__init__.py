"""Engines hold the models of a pair: the protocol, its implementations, and embedded pairs."""
