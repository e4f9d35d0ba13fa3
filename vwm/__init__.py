"""vwm: from a folder of videos to a world that people play, researchers probe and agents train in.

The names below are the public API. Each is imported when it is first used, so that ``import vwm`` takes milliseconds;
the functions do what the commands of the same name do, and take paths as text or as ``pathlib.Path``::

    vwm.record("CarRacing-v3", "data/carracing", frames=5_000)
    clips = vwm.open_clips("data/carracing", clip_length=16)
    world = vwm.load("carracing")
    report = vwm.evaluate("carracing", "data/carracing")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vwm.core.version import VERSION

if TYPE_CHECKING:  # ``__getattr__`` imports them when they are used
    from vwm.data.clip_folders import make_clip_dataset as open_clips
    from vwm.data.converting import convert_dataset as convert
    from vwm.data.importing import import_dataset as import_dataset
    from vwm.data.inspection import inspect_dataset as inspect
    from vwm.envs.recording import record_dataset as record
    from vwm.eval.goal_evaluation import evaluate_planner as plan
    from vwm.eval.probe_report import probe_features as probe
    from vwm.eval.world_report import evaluate_world as evaluate
    from vwm.tokenizers.corpus import ingest_videos as ingest
    from vwm.tokenizers.shard_encoding import encode_shards as encode
    from vwm.train.export import export_run as export
    from vwm.train.push import push_bundle as push
    from vwm.worlds.bundle import load_simulator as load
    from vwm.worlds.bundle import save_simulator as save
    from vwm.worlds.families import register_family as register_family
    from vwm.worlds.gymnasium_env import make_world as make_env
    from vwm.worlds.gymnasium_env import make_worlds as make_vector_env
    from vwm.worlds.pull import pull_bundle as pull

__version__ = VERSION

__all__ = [
    "convert", "encode", "evaluate", "export", "import_dataset", "ingest", "inspect", "load", "make_env",
    "make_vector_env", "open_clips", "plan", "probe", "pull", "push", "record", "register_family", "save",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vwm' has no attribute {name!r}")
    import importlib

    module, _, function = read_public_api()[name].partition(":")
    found = _accept_paths(getattr(importlib.import_module(module), function))
    globals()[name] = found
    return found


def read_public_api() -> dict[str, str]:
    """Read where each public name is defined, ``module:function``, from the imports that type checkers follow."""
    import ast
    from pathlib import Path

    body = ast.parse(Path(__file__).read_text(encoding="utf-8")).body
    block = next(node for node in body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}:{alias.name}" for node in imports for alias in node.names}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _accept_paths(function: Any) -> Any:
    """Let a function take text where it is annotated to take a ``Path``, and a ``Path`` where it takes text."""
    import functools
    import inspect
    import re
    from pathlib import Path

    signature = inspect.signature(function)
    annotations = {name: str(parameter.annotation) for name, parameter in signature.parameters.items()}
    # ``DataPath`` is text, or text for each data set
    to_path = {name for name, text in annotations.items() if re.search(r"\bPath\b", text) and "str" not in text}
    to_text = {name for name, text in annotations.items() if text in ("str", "str | None", "DataPath")}

    @functools.wraps(function)
    def with_paths(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        for name, value in bound.arguments.items():
            if name in to_path and isinstance(value, str):
                bound.arguments[name] = Path(value)
            elif name in to_text and isinstance(value, Path):
                bound.arguments[name] = str(value)
        return function(*bound.args, **bound.kwargs)

    return with_paths
