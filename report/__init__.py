"""Pictures and tables of a finished search: Pillow only, no ComfyUI."""
