"""The device side: coreset selection, quantization-aware training, the ClientApp."""
