"""Published video autoencoders of diffusers as streaming tokenizers, one module a class of theirs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
