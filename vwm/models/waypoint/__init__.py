"""Waypoint 1 (https://github.com/Overworldai/world_engine): a causal diffusion transformer with a long memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
