"""Bundles, ensembles, and the Gymnasium, TorchRL and Stable-Baselines3 environments of a simulator."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
