"""diffusers' base classes of networks, imported without the packages that they do not use.

``import diffusers`` imports torch's compiler for a decorator of its own layers, and transformers and torchao for the
types of options, if they are installed: the first two took 1.8 of the 4.6 s of CPU time after which ``vwm play`` showed
its first frame. diffusers works without all three, so they are hidden from it while it is imported.
Other code imports them as always.
It also reads the lists of files of all installed packages, which is half of its own import, to find three optional ones
(optimum, flashinfer, modelopt) under other names than their own. It does without that list where there is none.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch  # wholly, before a part of it is hidden

__all__ = [
    "DIFFUSERS_VERSION",
    "ConfigMixin",
    "ModelMixin",
    "find_diffusers_class",
    "no_init_weights",
    "register_to_config",
]


@contextmanager
def _hidden_modules(*names: str) -> Iterator[None]:
    """Let the import of each module that is not loaded yet fail, as if it were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the documented way to block an import
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _unread_package_lists() -> Iterator[None]:
    """Let the map from modules to the packages that installed them be empty, instead of reading it."""
    read = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = dict
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = read


# Where diffusers was imported before, it knows what is installed, and must find it.
_HIDDEN = () if "diffusers" in sys.modules else ("torch._dynamo", "transformers", "torchao")
with _hidden_modules(*_HIDDEN), _unread_package_lists():
    import diffusers
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.modeling_utils import no_init_weights

DIFFUSERS_VERSION: str = diffusers.__version__


def find_diffusers_class(name: str) -> type[ModelMixin]:
    """Return a network class of diffusers by its name, such as ``AutoencoderKLWan``."""
    # Its module, which this imports, may hold constants, also where a network is being built on the meta device.
    with torch.device("cpu"):
        found: type[ModelMixin] = getattr(diffusers, name)
    return found
