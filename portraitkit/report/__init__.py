"""What run reports share: pages, curves, cards, tables."""
