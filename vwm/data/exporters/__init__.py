"""Writers of other projects' formats, one module a format, each shard by shard behind ``DatasetExporter``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
