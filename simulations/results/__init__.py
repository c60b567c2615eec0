"""Results of many runs: files that processes share, spreads over seeds."""
