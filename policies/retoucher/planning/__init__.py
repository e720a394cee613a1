"""`align-retoucher --dry-run`: what a run needs on a device."""
