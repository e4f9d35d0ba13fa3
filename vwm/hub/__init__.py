"""The Hugging Face Hub: bundles by the name of their repository, downloads that resume, uploads in one commit."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
