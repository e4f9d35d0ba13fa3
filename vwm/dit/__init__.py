"""Continuous dynamics: a space-time diffusion transformer with a noise level a frame, actions, and streaming."""
