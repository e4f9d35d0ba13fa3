"""Dreamer 4 in PyTorch (https://github.com/nicklashansen/dreamer4, and mmbench2): worlds of many control tasks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
