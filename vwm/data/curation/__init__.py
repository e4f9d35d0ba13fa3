"""Curation of a corpus while it is ingested: shots, measures of clips, filters, near duplicates."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
