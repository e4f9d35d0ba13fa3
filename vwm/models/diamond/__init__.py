"""DIAMOND: diffusion in pixels as a world model (arXiv 2405.12399), with rewards, terminations and a policy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
