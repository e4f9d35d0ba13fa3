"""The registry of model families: the built-in ones, and those of other packages.

Another package registers its family by ``register_family``, or declares it as an entry point of the group
``vwm.families``, so that the commands find it without an import:

    [project.entry-points."vwm.families"]
    tiny = "my_package:TinyFamily"
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from vwm.core.components import public_path
from vwm.core.family import WorldFamily
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.simulator import Simulator
from vwm.core.suggestions import suggest
from vwm.core.trusted_packages import trust_package

BUILT_IN_FAMILIES = (
    "vwm.models.genie.GenieFamily",
    "vwm.models.dit.DiTFamily",
    "vwm.models.vjepa.VJEPAFamily",
    "vwm.models.rssm.RSSMFamily",
    "vwm.models.mdn_rnn.MDNRNNFamily",
    "vwm.models.tdmpc2.TDMPC2Family",
    "vwm.models.muzero.MuZeroFamily",
    "vwm.models.pets.PETSFamily",
    "vwm.models.autoregressive.AutoregressiveFamily",
    "vwm.models.oasis.OasisFamily",
    "vwm.models.diamond.DiamondFamily",
    "vwm.models.dreamer4.Dreamer4Family",
    "vwm.models.waypoint.WaypointFamily",
    "vwm.tokenizers.TokenizerFamily",
)
"""Public paths of the families that come with vwm."""
ENTRY_POINT_GROUP = "vwm.families"

_registered: dict[str, WorldFamily] = {}


class UnknownFamilyError(ValueError):
    """No registered family has this simulator or module; the message says how to register one."""


def register_family(family: WorldFamily) -> None:
    """Add a family, so that every command works on its runs and bundles.

    Bundles may then also name networks of the package that defines it. Registering a family again replaces it.

    Raises:
        ValueError: another family has the same name, or the same name of its simulator class.
    """
    for other in (*_built_in_families(), *_registered.values()):
        if public_path(type(other)) == public_path(type(family)):
            continue
        if other.name == family.name:
            raise ValueError(f"there is a family {family.name!r} already ({other.title}): choose another name")
        simulator = _class_name(family)
        if simulator and simulator == _class_name(other):
            raise ValueError(
                f"the family {other.name!r} has a simulator class {simulator} already, by which bundles name it: "
                "rename the class"
            )
    trust_package(type(family).__module__.partition(".")[0])
    _registered[family.name] = family


def world_families() -> tuple[WorldFamily, ...]:
    """Return all families, the built-in ones first.

    Raises:
        ImportError: an installed package declares a family that cannot be imported.
    """
    _register_installed_families()
    return (*_built_in_families(), *_registered.values())


def find_family(thing: Any) -> WorldFamily:
    """Return the family of a simulator or of a Lightning module.

    Raises:
        UnknownFamilyError: none has its class.
    """
    for family in world_families():
        if family.simulates(thing) if isinstance(thing, Simulator) else family.trains(thing):
            return family
    raise UnknownFamilyError(
        f"no family has the class {type(thing).__name__}. There are {', '.join(f.name for f in world_families())}; "
        "register another one with vwm.worlds.register_family"
    )


def find_simulator_class(name: str) -> type[NetworkSimulator]:
    """Return the simulator class that a bundle names.

    Raises:
        UnknownFamilyError: no family has it; the message suggests a name that is close.
    """
    paths = {_class_name(family): family.simulator_class for family in world_families() if family.simulator_class}
    if name not in paths:
        raise UnknownFamilyError(
            f"no family has a simulator {name!r}{suggest(name, paths)}. A family of another package has to be "
            "registered first (vwm.worlds.register_family)"
        )
    found: type[NetworkSimulator] = _import_path(paths[name])
    return found


@cache
def _built_in_families() -> tuple[WorldFamily, ...]:
    return tuple(_import_path(path)() for path in BUILT_IN_FAMILIES)


@cache
def _register_installed_families() -> None:
    """Register the families that installed packages declare, once."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            family = point.load()()
        except (ImportError, AttributeError) as error:
            raise ImportError(f"the family {point.name!r} ({point.value}) cannot be imported: {error}") from error
        register_family(family)


def _class_name(family: WorldFamily) -> str:
    return family.simulator_class.rpartition(".")[2]


def _import_path(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
