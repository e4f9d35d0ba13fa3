"""The infos of a Gymnasium ``VectorEnv``, split by environment."""

from __future__ import annotations

from typing import Any


def select_env_info(infos: dict[str, Any], world: int) -> dict[str, Any]:
    """Select the infos of one world: the entries whose mask ``_key`` is True there, also in nested dicts."""
    selected = {}
    for key, value in infos.items():
        if not key.startswith("_") and (f"_{key}" not in infos or infos[f"_{key}"][world]):
            selected[key] = select_env_info(value, world) if isinstance(value, dict) else value[world]
    return selected
