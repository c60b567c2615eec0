"""How fast the project is, beside its peers: side by side in one run, as ratios."""
