"""How updates become one model: Flower's strategies on packed updates, FedBuff, privacy."""
