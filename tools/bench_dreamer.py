"""Benchmark DreamerV3's update against r2dreamer's, with equal sizes, shapes and settings, alternating in one process.

    python tools/bench_dreamer.py --r2dreamer PATH
    python tools/bench_dreamer.py --r2dreamer PATH --size 12M --batch 16 --length 64 --repeats 3 --out figures.json

PATH is a checkout of github.com/NM512/r2dreamer (MIT), which requires tensordict, too. Its
``Dreamer._cal_grad``, ``_agc`` and optimizer run as they are, uncompiled, in float32, with the decoder of DreamerV3
(``rep_loss: dreamer``). Neither side samples from a replay buffer. Compare CPU seconds if other programs are running.
"""

from __future__ import annotations

import argparse
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from timing import medians, race, save

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces
from vwm.models.rssm.world_model import RSSMWorldModelConfig
from vwm.rl.agent import ReplayBatch
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.dreamer import Dreamer

SIZES = {  # deter, hidden, classes, depth, units
    "1M": (512, 64, 4, 4, 64),
    "12M": (2048, 256, 16, 16, 256),
    "25M": (3072, 384, 24, 24, 384),
    "50M": (4096, 512, 32, 32, 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--r2dreamer", type=Path, required=True, help="a checkout of its code")
    parser.add_argument("--size", choices=SIZES, default="12M", help="of the networks")
    parser.add_argument("--batch", type=int, default=4, help="sequences per update (published: 16)")
    parser.add_argument("--length", type=int, default=16, help="time steps per sequence (published: 64)")
    parser.add_argument("--vector", type=int, default=0, help="size of a vector observation; 0 for 64x64 images")
    parser.add_argument("--actions", type=int, default=6, help="dimensions of an action (walker-walk: 6)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which the two take turns")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    (ours, count), (theirs, their_count) = our_update(options), their_update(options)
    print(f"parameters: vwm {count / 1e6:.2f}M, r2dreamer {their_count / 1e6:.2f}M")
    figures = race({"vwm": ours, "r2dreamer": theirs}, options.repeats, warmup=1)
    middle = medians(figures)
    for name, each in middle.items():
        print(f"{name:>10}: {each['clock']:.3f} s per update, {each['cpu']:.3f} CPU s (medians of {options.repeats})")
    ratio = {kind: middle["r2dreamer"][kind] / middle["vwm"][kind] for kind in ("clock", "cpu")}
    print(f"vwm is {ratio['clock']:.2f} times as fast ({ratio['cpu']:.2f} by CPU seconds)")
    save(options.out, {"settings": {k: str(v) for k, v in vars(options).items()}, "seconds": figures})


def our_update(options: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    """Return our update on random time steps, and the number of its weights."""
    deter, hidden, classes, depth, units = SIZES[options.size]
    shape = (options.vector,) if options.vector else (64, 64, 3)
    agent = Dreamer(
        EnvSpaces(ObservationSpace.of_shape(shape), ActionSpace("continuous", options.actions)),
        RSSMWorldModelConfig(deter=deter, hidden=hidden, classes=classes, depth=depth, units=units),
        ActorConfig(width=units),
        CriticConfig(width=units),
        batch_size=options.batch,
        batch_length=options.length,
    )
    size = (options.batch, options.length + 1)
    seen = torch.randn(*size, *shape) if options.vector else torch.randint(256, (*size, *shape), dtype=torch.uint8)
    no = torch.zeros(size, dtype=torch.bool)
    action = torch.rand(*size, options.actions) * 2 - 1
    extras = {name: torch.zeros(*size, *kept, dtype=dtype) for name, (kept, dtype) in agent.extras.items()}
    batch = ReplayBatch(seen, torch.randn(size), no, no, no, action, extras, torch.zeros(size, dtype=torch.int64))
    trained = [p for p in agent.parameters() if p.requires_grad]
    return lambda: agent.update(batch), sum(p.numel() for p in trained)


def their_update(options: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    """Return their update, and the number of its weights."""
    sys.path.insert(0, str(options.r2dreamer))
    sys.modules["torch.utils.tensorboard"] = types.ModuleType("tensorboard")
    sys.modules["torch.utils.tensorboard"].SummaryWriter = None  # type: ignore[attr-defined] # its logger's, unused
    from dreamer import Dreamer as Theirs
    from tensordict import TensorDict

    agent = Theirs(their_config(options), *their_spaces(options))
    size = (options.batch, options.length)
    seen = torch.randn(*size, options.vector) if options.vector else torch.randint(256, (*size, 64, 64, 3)) / 255.0
    no = torch.zeros(*size, 1, dtype=torch.bool)
    data = TensorDict(
        {
            "vector" if options.vector else "image": seen,
            "action": torch.rand(*size, options.actions) * 2 - 1,
            "reward": torch.randn(*size, 1),
            "is_first": no[..., 0],
            "is_last": no,
            "is_terminal": no,
        },
        batch_size=size,
    )
    weights = list(agent._named_params.values())

    def update() -> None:
        stoch, deter = agent.rssm.initial(options.batch)
        agent._update_slow_target()
        agent._scaler = SimpleNamespace(scale=lambda loss: loss)  # float32 has nothing to scale
        agent._cal_grad(data.clone(), (stoch.detach(), deter.detach()))
        agent._agc(weights)
        agent._optimizer.step()
        agent._optimizer.zero_grad(set_to_none=True)

    return update, sum(p.numel() for p in weights)


def their_config(options: argparse.Namespace) -> Any:
    """Return their settings for this size as plain attributes, uncompiled."""
    deter, hidden, classes, depth, units = SIZES[options.size]
    said = yaml.safe_load((options.r2dreamer / "configs/model/_base_.yaml").read_text())
    keys = ["$^", ".*"] if options.vector else [".*", "$^"]
    values = {
        "${device}": "cpu", "${model.deter}": deter, "${model.hidden}": hidden, "${model.discrete}": classes,
        "${model.depth}": depth, "${model.units}": units, "${model.act}": "SiLU", "${model.norm}": True,
        "${env.encoder.cnn_keys}": keys[0], "${env.decoder.cnn_keys}": keys[0],
        "${env.encoder.mlp_keys}": keys[1], "${env.decoder.mlp_keys}": keys[1],
    }  # fmt: skip
    said.update(compile=False, rep_loss="dreamer")
    return attributes(said, values)


class Attributes(dict[str, Any]):
    """A dictionary whose entries are attributes, too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


def attributes(value: Any, values: dict[str, Any]) -> Any:
    """Convert nested dictionaries to ``Attributes``; fill in placeholders, parse numbers that YAML reads as text."""
    if isinstance(value, dict):
        return Attributes({k: attributes(v, values) for k, v in value.items()})
    if isinstance(value, list):
        return [attributes(v, values) for v in value]
    if isinstance(value, str):
        if value in values:
            return values[value]
        try:
            return float(value)
        except ValueError:
            return value
    return value


def their_spaces(options: argparse.Namespace) -> tuple[Any, Any]:
    from gymnasium import spaces

    key, shape = ("vector", (options.vector,)) if options.vector else ("image", (64, 64, 3))
    return (
        spaces.Dict({key: spaces.Box(-np.inf, np.inf, shape)}),
        spaces.Box(-1.0, 1.0, (options.actions,)),
    )


if __name__ == "__main__":
    main()
