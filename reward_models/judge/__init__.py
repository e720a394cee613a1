"""The judge: a model that compares two retouches of a photo, what it is asked, and how its answers are read."""
