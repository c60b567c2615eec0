"""Messages with devices: who is there, what goes out and comes back, what of it is believed."""
