"""Low-rank adaptation (LoRA, arXiv 2106.09685): W + alpha / r * B A is trained, with the pretrained W frozen.

A [r, in] is initialized randomly and B [out, r] with zeros, so that the adapted network initially equals the
pretrained one. After training the product is added to W, which gives a network of the original class and speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AdaptationMode = Literal["frozen", "lora", "trained"]
"""How pretrained weights are trained: not at all, by low-rank matrices added to some of them, or all of them."""


@dataclass
class LoRAConfig:
    """The linear layers that are adapted, and the rank of the adaptation.

    Attributes:
        rank: r.
        alpha: scale; the product is multiplied by alpha / r, so that the best learning rate depends little on r.
        targets: last components of the names of linear layers: ``qkv`` and ``out`` of attention in every transformer
            here; of feed-forwards ``mlp.0`` and ``mlp.2`` (Genie), ``up`` and ``down`` (DiT); of DiT ``modulation``.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("qkv", "out")

    def apply_to(self, network: nn.Module) -> None:
        """Replace the target layers of a network by ``LoRALinear``, in place.

        Raises:
            ValueError: a target matches no linear layer, or the rank is below 1.
        """
        if self.rank < 1:
            raise ValueError(f"lora.rank must be 1 or more, got {self.rank}")
        linears = {name: part for name, part in network.named_modules() if type(part) is nn.Linear}
        for target in self.targets:
            found = [name for name in linears if f".{name}".endswith(f".{target}")]
            if not found:
                raise ValueError(
                    f"lora.targets: no linear layer is called {target!r}; choose from {_linear_layer_names(linears)}"
                )
            for name in found:
                _replace_submodule(network, name, LoRALinear(linears.pop(name), self.rank, self.alpha))


class LoRALinear(nn.Linear):
    """A frozen linear layer plus a trained product of low rank. The frozen weights keep their names.

    Args:
        base: the layer whose weights are used.
        rank, alpha: see ``LoRAConfig``.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight = base.weight
        self.bias = base.bias
        self.scale = alpha / rank
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged_linear(self) -> nn.Linear:
        """Return an equivalent ``nn.Linear``."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.scale * self.lora_b @ self.lora_a, requires_grad=False)
        plain.bias = self.bias
        return plain


def prepare_finetuning(network: nn.Module, how: AdaptationMode, lora: LoRAConfig | None = None) -> None:
    """Freeze, adapt or unfreeze a pretrained network. ``lora=None`` uses the defaults of ``LoRAConfig``.

    Raises:
        ValueError: ``lora`` is set in a mode that does not use it.
    """
    if how != "lora" and lora is not None:
        raise ValueError(f"lora is set, but adapt={how!r} uses none: set adapt to lora, or lora to null")
    network.requires_grad_(how == "trained")
    if how == "lora":
        (lora or LoRAConfig()).apply_to(network)


def merge_lora(network: nn.Module) -> None:
    """Replace all ``LoRALinear`` layers by equivalent ``nn.Linear`` layers, in place."""
    adapted = {name: part for name, part in network.named_modules() if isinstance(part, LoRALinear)}
    for name, part in adapted.items():
        _replace_submodule(network, name, part.merged_linear())


def _replace_submodule(network: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, part)


def _linear_layer_names(names: dict[str, nn.Linear]) -> str:
    """Distinct names without the indices of their blocks."""
    ends = {".".join(name.split(".")[-2:]) if name.split(".")[-1].isdigit() else name.split(".")[-1] for name in names}
    return ", ".join(sorted(ends))
