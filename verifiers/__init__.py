"""Verifiers: maths and weights. Optional packages are imported inside functions."""
