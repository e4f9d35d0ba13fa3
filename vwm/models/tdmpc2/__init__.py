"""TD-MPC2's latent world model (arXiv 2310.16828)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
