"""Autoregressive token worlds: the next token over space and time (IRIS, arXiv 2209.00588; GAIA-1, 2309.17080)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
