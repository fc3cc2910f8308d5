"""The user's graph: what stands in it, what is behind a node, and what travels in a saved picture's workflow."""
