"""V-JEPA (arXiv 2404.08471, 2506.09985): masked space-time pretraining and action-conditioned prediction."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
