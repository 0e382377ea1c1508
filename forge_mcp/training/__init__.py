"""PiSSA over a 4-bit residual base, on MLX."""
