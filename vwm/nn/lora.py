"""Low-rank adaptation (LoRA, arXiv 2106.09685): a pretrained matrix W stays, and W + alpha / r * B A is trained.

A [r, in] begins random and B [out, r] at zero, so that the adapted network begins as the pretrained one. When it has
learned, the product is added to W, and the network is again one of its class, as quick as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AdaptationMode = Literal["frozen", "lora", "trained"]
"""What of pretrained weights may move: none, a product of low rank beside some of them, or all."""


@dataclass
class LoRAConfig:
    """Which matrices are adapted, and how freely.

    Attributes:
        rank: r.
        alpha: by alpha / r the product is multiplied, so that another rank asks for no other learning rate.
        targets: the last parts of the names of linear layers: ``qkv`` and ``out`` of attention in every transformer
            here; of feed-forwards ``mlp.0`` and ``mlp.2`` (Genie), ``up`` and ``down`` (DiT); of DiT ``modulation``.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("qkv", "out")

    def apply(self, network: nn.Module) -> None:
        """Put low-rank matrices beside those of the network, in place.

        Raises:
            ValueError: a target names no linear layer, or the rank is none.
        """
        if self.rank < 1:
            raise ValueError(f"lora.rank must be 1 or more, got {self.rank}")
        linears = {name: part for name, part in network.named_modules() if type(part) is nn.Linear}
        for target in self.targets:
            found = [name for name in linears if f".{name}".endswith(f".{target}")]
            if not found:
                raise ValueError(
                    f"lora.targets: no linear layer is called {target!r}; there are {_linear_layer_names(linears)}"
                )
            for name in found:
                _replace_submodule(network, name, LoRALinear(linears.pop(name), self.rank, self.alpha))


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trained product of low rank beside it; the frozen weights keep their names.

    Args:
        base: whose weights it takes over.
        rank, alpha: see ``LoRAConfig``.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that says the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.scale * self.lora_b @ self.lora_a, requires_grad=False)
        plain.bias = self.bias
        return plain


def prepare_finetuning(network: nn.Module, how: AdaptationMode, lora: LoRAConfig | None = None) -> None:
    """Let as much of a pretrained network move as ``how`` says; ``lora`` None takes its defaults.

    Raises:
        ValueError: settings of LoRA where it is not asked for.
    """
    if how != "lora" and lora is not None:
        raise ValueError(f"lora is set, but adapt={how!r} uses none: set adapt to lora, or lora to null")
    network.requires_grad_(how == "trained")
    if how == "lora":
        (lora or LoRAConfig()).apply(network)


def merge_lora(network: nn.Module) -> None:
    """Make plain layers of all low-rank ones, in place."""
    adapted = {name: part for name, part in network.named_modules() if isinstance(part, LoRALinear)}
    for name, part in adapted.items():
        _replace_submodule(network, name, part.merged())


def _replace_submodule(network: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, part)


def _linear_layer_names(names: dict[str, nn.Linear]) -> str:
    """Names without the numbers of their blocks, each once."""
    ends = {".".join(name.split(".")[-2:]) if name.split(".")[-1].isdigit() else name.split(".")[-1] for name in names}
    return ", ".join(sorted(ends))
