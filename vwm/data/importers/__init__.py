"""Data sets of other projects, one module a format, each read episode by episode behind ``EpisodeSource``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
