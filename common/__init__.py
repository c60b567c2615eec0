"""What client and server must agree on: data, models, quantization, wire format, configuration."""
