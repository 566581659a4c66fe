"""Other libraries' code, each run in an environment of its own and never imported by potstill."""
