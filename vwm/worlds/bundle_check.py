"""Check everything that a folder of trained parts holds, by loading it."""

from __future__ import annotations

from pathlib import Path

from vwm.core.bundle_folder import BUNDLE_INDEX_FILE, BundleError
from vwm.core.components import COMPONENT_CONFIG_FILE, load_component
from vwm.core.network_simulator import NetworkSimulator
from vwm.worlds.bundle import load_simulator


def check_bundle(folder: Path) -> NetworkSimulator | None:
    """Load what ``vwm export`` writes: a world, or networks without a simulator (a tokenizer, a V-JEPA encoder).

    Returns:
        The world on the CPU; None where the folder holds networks only.

    Raises:
        BundleError: it holds neither.
        ComponentError: a network is damaged, or its class is none of vwm.
    """
    if (folder / BUNDLE_INDEX_FILE).is_file():
        return load_simulator(folder, "cpu", accelerate="none")
    parts = [path.parent for path in (*folder.glob(COMPONENT_CONFIG_FILE), *folder.glob(f"*/{COMPONENT_CONFIG_FILE}"))]
    if not parts:
        raise BundleError(f"{folder} is no bundle: it has neither {BUNDLE_INDEX_FILE} nor {COMPONENT_CONFIG_FILE}")
    for part in parts:
        load_component(part)
    return None
