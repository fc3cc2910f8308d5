"""The only code, with nodes/, that knows ComfyUI."""
