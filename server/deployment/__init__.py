"""A fleet of real devices: its keys, who may take part, runs and what is seen of them."""
