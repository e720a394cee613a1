"""Judges and rewards behind HTTP: the server, its clients, and what they say to each other."""
