"""Largest values that files and settings may ask for: beyond every use, and below what would fill a machine."""

MAX_FPS = 1000
MAX_CONTEXT_FRAMES = 4096
MAX_SAMPLING_STEPS = 1000
"""A step of more would take minutes."""
MAX_SAMPLING_VALUE = 1000
"""Temperatures and guidance beyond give noise."""
MAX_FRAME_SIDE = 8192
"""Pixels of a side of the frames that are recorded or ingested."""
MAX_WORKERS = 1024
"""Processes that read or record."""
