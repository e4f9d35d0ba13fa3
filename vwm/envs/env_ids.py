"""The one resolver of environment ids: an id and options give a Gymnasium environment.

Recording, agents and evaluation open every environment through ``make_env``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from vwm.core.suggestions import suggest
from vwm.envs.opengl import prepare_for_opengl

MAX_ENV_SEED = 2**31 - 1
"""Upper bound of the seeds that environments are given: Crafter and Procgen take 31 bits."""
BUILT_IN_ENV_MODULES = {
    "vwm/TwoRooms-v0": "vwm.envs.two_rooms",
    "vwm/Lamp-v0": "vwm.envs.lamp",
    "vwm/DynaMaze-v0": "vwm.envs.dyna_maze",
    "vwm/Crafter-v0": "vwm.envs.crafter",
    "vwm/MinAtar-v0": "vwm.envs.minatar",
    "vwm/PushT-v0": "vwm.envs.push_t",
    "vwm/Reacher-v0": "vwm.envs.reacher",
    "vwm/World-v0": "vwm.worlds.gymnasium_env",
}
"""Modules that register the ids of this package's own environments. ``vwm/World-v0`` is the simulator of a bundle."""
ENV_PACKAGE_EXTRAS = {
    "crafter": "crafter",
    "dm_control": "dmc",
    "vwm/reacher": "dmc",
    "minatar": "minatar",
    "vwm/pusht": "pusht",
}
"""Extra of this package to install, by a part of the id."""


def make_env(env_id: str, options: Mapping[str, Any] | None = None) -> Any:
    """Make a Gymnasium environment.

    Args:
        env_id: ``procgen:coinrun`` (or another Procgen game), ``ALE/Pong-v5``, an id of this package
            (``vwm/TwoRooms-v0``, ``vwm/Lamp-v0``, ``vwm/DynaMaze-v0``, ``vwm/World-v0`` with the option ``bundle``), or
            any other Gymnasium id; ``module:Id-v0`` imports the module that registers the id.
        options: arguments of the environment's constructor.

    Raises:
        ImportError: a package is not installed; the message names the extra to install.
        ValueError: there is no such id, or it does not take the options.
    """
    options = dict(options or {})
    if env_id.startswith("procgen:"):
        from vwm.envs.procgen import ProcgenEnv

        return ProcgenEnv(env_id.removeprefix("procgen:"), **options)
    module = env_id.partition(":")[0] if ":" in env_id else None
    if "dm_control" in env_id:
        prepare_for_opengl()
    try:
        if env_id.startswith("ALE/"):
            import ale_py

            gymnasium.register_envs(ale_py)
        if env_id in BUILT_IN_ENV_MODULES:
            importlib.import_module(BUILT_IN_ENV_MODULES[env_id])
        if module and importlib.util.find_spec(module.partition(".")[0]) is None:
            sys.path.append(str(Path.cwd()))  # a module in the current folder
        env = gymnasium.make(env_id, disable_env_checker=True, **options)
        if "mujoco" in sys.modules:  # Gymnasium's own environments load OpenGL when they first draw
            prepare_for_opengl()
        return env
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        if module and importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ImportError(
                f"{env_id}: there is no module {module!r}: install it, or put it in the current folder or on PYTHONPATH"
            ) from error
        extra = next((extra for part, extra in ENV_PACKAGE_EXTRAS.items() if part in env_id.lower()), "envs")
        raise ImportError(
            f"{env_id} needs a package that is not installed ({error}): pip install -e '.[{extra}]' in the clone"
        ) from error
    except gymnasium.error.UnregisteredEnv as error:
        known = ["procgen:coinrun", *BUILT_IN_ENV_MODULES, *gymnasium.registry]
        raise ValueError(
            f"there is no environment {env_id}{suggest(env_id, known)}. Known ids: procgen:coinrun, ALE/Pong-v5, "
            f"{', '.join(BUILT_IN_ENV_MODULES)}, any Gymnasium id"
        ) from error
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f"{env_id} with options {options}: {error}") from error


def check_env_id(env_id: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise the errors of ``make_env`` for an id that is not known; an environment of a known id is not made."""
    if env_id.startswith("procgen:"):
        from vwm.envs.procgen import check_procgen_game

        check_procgen_game(env_id.removeprefix("procgen:"))
    elif env_id not in BUILT_IN_ENV_MODULES and env_id not in gymnasium.registry:
        make_env(env_id, options).close()
