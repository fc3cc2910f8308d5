"""The searches: each a small frozen dataclass, called with a run and a seed."""
