"""Images and labels: where they are read from, how devices share them, how a model sees them."""
