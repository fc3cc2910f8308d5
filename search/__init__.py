"""Search algorithms over diffusion noise: torch and the standard library, nothing else."""
