"""World Models' mixture-density recurrent network (arXiv 1803.10122)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
