"""The global model: devices' states made one, the forms it takes, how good it is."""
