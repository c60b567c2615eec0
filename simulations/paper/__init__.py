"""The paper's experiments on one device, without a federation: grids of settings -> tables."""
