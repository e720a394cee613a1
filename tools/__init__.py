"""What rebuilds the embedded weights and measures speed: outside the wheel."""
