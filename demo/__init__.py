"""The embedded default: a toy world, a tiny text-to-image model of it, and its training."""
