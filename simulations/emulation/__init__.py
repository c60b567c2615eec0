"""Emulated hardware in virtual time: fleets, what tasks cost, who is late, fails or runs flat."""
