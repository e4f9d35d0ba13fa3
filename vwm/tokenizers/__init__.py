"""Tokenizers, which encode video to latents and decode it; their losses, training and use on shards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
