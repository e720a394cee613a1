"""Preference data: what a retouch pair is, and how such pairs are made."""
