"""The ground everyone stands on: errors, configuration, runs, images, faces, GRPO maths."""
