"""Fused weights, GGUF, quantisation, the parity gate."""
