"""Contracts: simulators, tokenizers, families; seeds, nested states, and networks on disk."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
