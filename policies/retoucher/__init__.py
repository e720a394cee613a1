"""The diffusion portrait retoucher and its online alignment."""
