"""Genie (arXiv 2402.15391): latent actions learned from unlabeled video, masked dynamics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
