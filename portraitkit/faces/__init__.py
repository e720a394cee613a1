"""Face detection, 468-point mesh, regions and identity as small real weights in plain torch."""
