"""Verifiers under ComfyUI's model management, their files, and the graph-native scoring and selection."""
