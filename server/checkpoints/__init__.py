"""What a killed run goes on from."""
