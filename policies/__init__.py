"""What learns: the diffusion retoucher and the vision-language policies."""
