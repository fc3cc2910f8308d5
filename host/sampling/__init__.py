"""Sampling with ComfyUI: the stock sampler made repeatable, noises, segments, batches, and the engine on top."""
