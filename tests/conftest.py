"""Shared by all tests: the folder's own modules can be imported, and one thread keeps the two cores for two tests."""

import contextlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

# Before decord, whose own zlib otherwise breaks the PNG files that pygame reads.
with contextlib.suppress(ImportError):
    import pygame  # noqa: F401
