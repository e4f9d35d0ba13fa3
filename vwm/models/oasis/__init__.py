"""Oasis 500M (https://oasis-model.github.io): a diffusion transformer over a ViT's latents of Minecraft."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
