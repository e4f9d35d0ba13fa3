"""OpenGL and PyTorch's compiler in one process."""

from __future__ import annotations

import importlib
import importlib.util


def prepare_for_opengl() -> None:
    """Load Triton before OpenGL, which dm_control loads as soon as it is imported, and Gymnasium when it draws.

    Mesa draws with an LLVM of its own where there is no graphics card. A process that has loaded it crashes
    (segmentation fault) as soon as PyTorch's compiler imports Triton, which brings another LLVM; in the other order
    both work.
    """
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
