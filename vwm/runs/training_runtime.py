"""Options of the command line that apply to the training of any agent: precision, compilation and loggers.

Agents do not import Lightning. The command makes a ``lightning.fabric.Fabric`` from its options and passes on the parts
that a training uses; without a command, as in tests and scripts, the defaults apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from vwm.core.blocks import CompilerBackend, prepare_compiler
from vwm.runs.metric_loggers import MetricLogger


@dataclass(frozen=True)
class TrainingRuntime:
    """How a training computes and where it logs.

    Attributes:
        autocast: makes the context of every update (``Fabric.autocast``); acting and evaluation stay in float32.
        compile: whether networks are compiled; see ``compile_networks``.
        loggers: get every metric, in addition to the CSV tables.
    """

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    compile: bool = False
    loggers: Sequence[MetricLogger] = ()


def compile_networks(network: nn.Module, backend: CompilerBackend = "inductor") -> None:
    """Compile every outermost part that has a ``forward`` in place, which keeps the names of its weights.

    Agents and world models have methods of other names, which loop over time in Python. Their encoders, cells, heads
    and decoders have a ``forward``.
    """
    prepare_compiler()
    for child in network.children():
        if type(child).forward is not nn.Module.forward:
            child.compile(backend=backend)
        else:
            compile_networks(child, backend)
