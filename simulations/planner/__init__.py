"""What rounds would cost on very large fleets: the emulation's rules without any training."""
