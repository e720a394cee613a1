"""The page on which people judge pairs."""
