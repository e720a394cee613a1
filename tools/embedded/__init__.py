"""Recipes of the embedded weights."""
