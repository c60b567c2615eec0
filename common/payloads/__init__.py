"""What travels and is stored as bytes: packed codes, the checksummed payload, update formats."""
