"""Where emulated devices run: worker processes behind Flower's Grid, or Flower's own on Ray."""
