"""Training a float model, to be a teacher."""
