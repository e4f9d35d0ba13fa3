"""Probabilistic ensembles of dynamics networks over vectors: PETS (arXiv 1805.12114)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
