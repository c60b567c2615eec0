"""Emulated devices a second: this project's engine against Flower's own simulation."""
