"""Portraits with known truth: synthetic people, blemishes, retouch faults, makeup, expressions."""
