"""Networks on disk: a folder with ``config.json`` and safetensors, checked key by key when it is read.

The layout is diffusers' (``from_pretrained`` reads it too). ``config.json`` also names the module of the class, so that
a folder says by itself what it holds; only classes of this package and of packages with registered families can be
named.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from vwm.core.bundle_folder import check_no_outside_link
from vwm.core.json_files import read_json_object
from vwm.core.network_base import ModelMixin, no_init_weights
from vwm.core.trusted_packages import is_trusted_package

COMPONENT_CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 2**20
MAX_SETTING = 2**24
"""Largest whole number in a network's config: beyond every width, window and number of codes."""
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")

NetworkT = TypeVar("NetworkT", bound=ModelMixin)


class ComponentError(ValueError):
    """A network that cannot be loaded; the message names the folder or file and what is wrong with it."""


def save_component(part: ModelMixin, folder: str | os.PathLike[str], float16: bool = False) -> None:
    """Write a network into a new folder, without the path that it was loaded from.

    Args:
        part: the network; it is not changed.
        folder: the folder to make.
        float16: store the weights in float16, which halves the size; ``load_component`` converts them to float32.
    """
    stored = torch.nn.Module.half(copy.deepcopy(part)) if float16 else part
    if not all(torch.isfinite(weight).all() for weight in stored.state_dict().values()):
        raise ComponentError(f"{type(part).__name__} has weights that are not finite{' in float16' if float16 else ''}")
    stored.save_pretrained(folder, safe_serialization=True)
    config = Path(folder) / COMPONENT_CONFIG_FILE
    settings = json.loads(config.read_text())
    settings.pop("_name_or_path", None)
    settings["_module"] = public_module(type(part))
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def public_path(kind: type) -> str:
    """Return the path by which files name a class: ``vwm.models.dit.DiT``, not the module in which it is defined.

    That is its package where that re-exports the class, else its module.
    """
    package = kind.__module__.rpartition(".")[0]
    exported = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package if exported else kind.__module__}.{kind.__name__}"


def public_module(kind: type) -> str:
    """Return the module of a class's ``public_path``, such as ``vwm.models.dit``."""
    return public_path(kind).rpartition(".")[0]


def load_component(folder: str | os.PathLike[str], kind: type[ModelMixin] | None = None) -> ModelMixin:
    """Load a network, frozen and in evaluation mode; every key must exist and fit.

    Args:
        folder: as ``save_component`` wrote it.
        kind: the class, for folders that do not name it.

    Raises:
        ComponentError: the folder is missing or damaged, or holds another class.
    """
    folder = Path(folder)
    if not (folder / COMPONENT_CONFIG_FILE).is_file():
        raise ComponentError(f"{folder}: there is no {COMPONENT_CONFIG_FILE} in it")
    if kind is None:
        kind = _named_class(folder / COMPONENT_CONFIG_FILE)
    _check_weights(folder, kind)
    try:
        with torch.device("cpu"):  # also where other networks are built on the meta device
            part, info = _load_weights(folder, kind)
    except Exception as error:  # diffusers and safetensors raise many types of errors for a damaged folder
        raise ComponentError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    wrong = {k: v for k, v in info.items() if k in ("missing_keys", "unexpected_keys", "mismatched_keys") and v}
    if wrong or info.get("error_msgs"):
        listed = "; ".join(
            f"{len(v)} {k.replace('_', ' ')}, such as {sorted(map(str, v))[:3]}" for k, v in wrong.items()
        )
        raise ComponentError(
            f"{folder}: the weights do not fit {COMPONENT_CONFIG_FILE}: {listed or str(info['error_msgs'])[:400]}"
        )
    for name, weight in part.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ComponentError(f"{folder}: weight {name} has values that are not finite")
    return torch.nn.Module.float(part).eval().requires_grad_(False)


def _load_weights(folder: Path, kind: type[ModelMixin]) -> tuple[ModelMixin, dict[str, Any]]:
    """Construct a network and load its weights; return it and, by diffusers' names, which keys did not fit."""
    if not is_trusted_package(kind.__module__):  # diffusers' own networks rename keys of old folders
        network, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        return network, info
    # What ``from_pretrained`` does with a local folder, without torch's compiler, which it imports for its hooks.
    with no_init_weights():
        network = kind.from_config(read_component_config(folder / COMPONENT_CONFIG_FILE))
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return network, network.load_state_dict(weights, strict=False)._asdict()


def _check_weights(folder: Path, kind: type[ModelMixin]) -> None:
    """Compare the weights in a folder with its config before anything is allocated.

    Raises:
        ComponentError: other names, shapes or types than those of the network that the config describes.
    """
    stored = _read_weight_headers(folder)
    if not stored and not _has_no_weights(folder, kind):
        raise ComponentError(f"{folder}: has no weights (*.safetensors)")
    expected = _expected_weights(folder, kind, len(stored))
    for name in sorted(expected.keys() & stored.keys()):
        weight, (shape, type_name) = expected[name], stored[name]
        if list(weight.shape) != shape:
            raise ComponentError(
                f"{folder}: weight {name} is {shape}, and {COMPONENT_CONFIG_FILE} describes {list(weight.shape)}"
            )
        if weight.is_floating_point() != (type_name in FLOAT_TYPES):
            raise ComponentError(f"{folder}: weight {name} is of type {type_name}, not of {', '.join(FLOAT_TYPES)}")


def _read_weight_headers(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Return shape and type of each weight, from the headers of the safetensors files."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        check_no_outside_link(file, folder, ComponentError)
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a mapping)
                    part = weights.get_slice(name)
                    found[name] = (part.get_shape(), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ComponentError(f"{file}: not a safetensors file ({error})") from error
    return found


def _has_no_weights(folder: Path, kind: type[ModelMixin]) -> bool:
    """Whether a config describes a network without weights, such as a projector that only normalizes."""
    try:
        return not _expected_weights(folder, kind, count=0)
    except ComponentError:
        return False


def _expected_weights(folder: Path, kind: type[ModelMixin], count: int) -> dict[str, torch.Tensor]:
    """Return the state of the network that a config describes, without memory for its values.

    Args:
        folder: of the config.
        kind: the class.
        count: of stored weights: a network of more layers than weights does not belong to them.
    """
    file = folder / COMPONENT_CONFIG_FILE
    settings = read_component_config(file)
    for name, value in settings.items():
        if isinstance(value, int) and re.search(r"depth|layers|blocks", name) and value > count:
            raise ComponentError(f"{file}: {name}={value}, and {folder} holds {count} weights")
    arguments = {name: value for name, value in settings.items() if not name.startswith("_")}
    is_typed = is_trusted_package(kind.__module__)  # the annotations of other packages are not always true
    try:
        if is_typed:
            check_constructor_arguments(kind, arguments)
        # The generator is left alone, so that loading draws the numbers that it always drew.
        with torch.random.fork_rng([]), torch.device("meta"), _SkipNormalDraws():
            network = kind(**arguments) if is_typed else kind.from_config(settings)
    except Exception as error:  # whatever a constructor raises for settings that nobody checked
        raise ComponentError(
            f"{file}: does not describe a {kind.__name__} ({type(error).__name__}: {error})"
        ) from error
    return dict(network.state_dict())


class _SkipNormalDraws(TorchFunctionMode):
    """Leaves tensors as they are instead of filling them with ``normal_``.

    torch computes it in Python for tensors without memory, and imports its compiler for that.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def read_component_config(file: Path) -> dict[str, Any]:
    """Read a ``config.json``. Raises ComponentError where it is a link, no object of JSON, or too large."""
    check_no_outside_link(file, file.parent, ComponentError)
    return read_json_object(file, MAX_CONFIG_BYTES, ComponentError)


def load_pretrained_weights(
    network: ModelMixin,
    folder: str | os.PathLike[str],
    new: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> None:
    """Initialize a network with the weights of another one of its class, which is stored in a folder.

    Args:
        network: receives the weights, in place.
        folder: folder of the other network, as ``save_component`` wrote it.
        new, settings: see ``copy_weights``.

    Raises:
        ComponentError: the folder is missing or damaged, or holds another class; see also ``copy_weights``.
    """
    copy_weights(network, load_component(folder, type(network)), str(folder), new, settings)


def copy_weights(
    network: ModelMixin, other: ModelMixin, where: str, new: Sequence[str] = (), settings: Sequence[str] = ()
) -> None:
    """Initialize a network with the weights of another one of its class.

    Args:
        network: receives the weights, in place.
        other: provides them.
        where: the source, for error messages.
        new: prefixes of the names of weights that the network keeps as they are, whether or not the other network
            has them.
        settings: names of constructor arguments in which the two may differ. All others must be equal, since some
            change the meaning of weights and not their shapes.

    Raises:
        ComponentError: other settings, or weights that only one of the two has or that differ in shape. The message
            names them, and the network is not changed.
    """
    mine, theirs = (_constructor_arguments(part) for part in (network, other))
    differing = [name for name in mine if name not in settings and mine[name] != theirs[name]]
    if differing:
        listed = ", ".join(f"{name}={theirs[name]!r} there and {mine[name]!r} here" for name in differing)
        raise ComponentError(f"{where}: {listed}: set them equal")
    weights = {key: value for key, value in other.state_dict().items() if not key.startswith(tuple(new))}
    wanted = {key: value for key, value in network.state_dict().items() if not key.startswith(tuple(new))}
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    reshaped = [key for key in wanted.keys() & weights.keys() if wanted[key].shape != weights[key].shape]
    if missing or unexpected or reshaped:
        raise ComponentError(
            f"{where}: missing weights: {missing}, unexpected weights: {unexpected}, weights of another shape: "
            f"{sorted(reshaped)}"
        )
    if not any(weight.is_meta for weight in network.parameters()):  # such a network gets its values later
        network.load_state_dict(weights, strict=False)


def rebuild_network(network: NetworkT, **changes: Any) -> NetworkT:
    """Make a network of the same class with some settings changed and newly initialized weights.

    Args:
        network: the example.
        **changes: constructor arguments.
    """
    return type(network)(**(_constructor_arguments(network) | changes))


def _constructor_arguments(part: ModelMixin) -> dict[str, object]:
    """Return a network's constructor arguments; tuples become lists, as in JSON."""
    values = {name: value for name, value in part.config.items() if not name.startswith("_")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def resolve_network_class(module: str, name: str, where: str) -> type[ModelMixin]:
    """Return a network class of a trusted package; ``where`` is named in errors. Raises ComponentError."""
    if not is_trusted_package(module):
        raise ComponentError(
            f"{where} names {module}.{name}; a folder may only name vwm's classes, and those of packages whose "
            "families are registered (vwm.worlds.register_family)"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ComponentError(
            f"{where} names {module}.{name}, which {module.partition('.')[0]} does not have"
        ) from error
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ComponentError(f"{where} names {module}.{name}, which is no network")
    return found


def _named_class(config: Path) -> type[ModelMixin]:
    settings = read_component_config(config)
    module, name = settings.get("_module"), settings.get("_class_name")
    if not isinstance(module, str) or not isinstance(name, str):
        raise ComponentError(f"{config}: does not name its class (_module, _class_name); export it again")
    return resolve_network_class(module, name, str(config))


def check_constructor_arguments(kind: type, arguments: Mapping[str, Any]) -> None:
    """Compare values with the types of a constructor, as the command line does.

    Raises:
        ValueError: a name that the constructor does not have, a value of another type, or a number beyond all sizes.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False)
    parameters = inspect.signature(kind).parameters
    try:
        parser.parse_object(dict(arguments))
    except ArgumentError as error:
        text = re.sub(r"<class '(.*?)'>", r"\1", " ".join(str(error).split()))
        raise ValueError(re.sub(r'^Parser key "(.*?)":', r"\1:", text)) from error
    for name, value in arguments.items():
        annotation = str(parameters[name].annotation) if name in parameters else "Any"
        if value is None and not re.search("None|Optional|Any", annotation):  # jsonargparse takes it for unset
            raise ValueError(f"{name} must not be null")
        is_whole = "int" in annotation and "float" not in annotation  # a size, a count or an index
        if is_whole and isinstance(value, int) and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, int) and abs(number) > MAX_SETTING for number in numbers):
            raise ValueError(f"{name}={value} is beyond {MAX_SETTING}")
