"""The diffusion transformer of Waypoint 1: one frame at a time, with keys and values of the frames before it.

The names of the weights are the published ones, except ``modulation``, which the published files repeat in every block,
and ``prompt``, the embedding of a text.

Legend: b batch, h w c of the latents, n tokens of a frame, d width.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.waypoint.memory import LayerMemory

LEVEL_CHANNELS = 512
LEVEL_SCALE = 1000.0
FREQUENCY_BASE = 10_000.0
NYQUIST_SHARE = 0.8
CONTROL_VALUES = 3
"""Numbers of an action beyond the buttons: two of the mouse and one of the wheel."""


class WaypointDiT(ModelMixin, ConfigMixin):
    """Predict the velocity of a noisy frame; the defaults are Waypoint-1-Small.

    Args:
        grid: (h, w) of the latents.
        channels: c of the latents.
        patch_size: side of a patch of latents, which is a token.
        width: d.
        depth: number of blocks.
        heads, kv_heads: of the attention, and of its keys and values.
        mlp_ratio: hidden channels of a perceptron per channel.
        buttons: number of buttons.
        control_every: blocks that read the action: the first and every so-manieth.
        prompt_every: blocks that read the prompt.
        prompt_width: of the prompt's embedding; 0 for networks without prompts.
        prompt_tokens: tokens of the prompt.
        local_slots: frames that most blocks remember.
        global_slots: frames that the others remember.
        global_stride: of which these are every so-manieth.
        global_every, global_offset: which blocks those are.
        gated: gate the heads of the attention.
        sigmas: noise levels of the sampling steps, from 1 to 0.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (32, 32),
        channels: int = 16,
        patch_size: int = 2,
        width: int = 2560,
        depth: int = 22,
        heads: int = 40,
        kv_heads: int = 20,
        mlp_ratio: int = 5,
        buttons: int = 256,
        control_every: int = 3,
        prompt_every: int = 3,
        prompt_width: int = 2048,
        prompt_tokens: int = 512,
        local_slots: int = 16,
        global_slots: int = 16,
        global_stride: int = 8,
        global_every: int = 4,
        global_offset: int = 0,
        gated: bool = True,
        sigmas: tuple[float, ...] = (1.0, 0.8609585762023926, 0.729332447052002, 0.3205108940601349, 0.0),
    ) -> None:
        super().__init__()
        self.grid = (int(grid[0]), int(grid[1]))
        if any(side < 1 or side % patch_size for side in self.grid):
            raise ValueError(f"grid={self.grid} must be multiples of patch_size={patch_size}")
        if width % (16 * heads) or heads % kv_heads:
            raise ValueError(f"width={width} must be a multiple of 16 heads={heads}, and heads of kv_heads={kv_heads}")
        if len(sigmas) < 2 or sigmas[-1] != 0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
            raise ValueError(f"sigmas={tuple(sigmas)} must fall to 0")
        self.channels = channels
        self.patch_size = patch_size
        self.buttons = buttons
        self.sigmas = tuple(map(float, sigmas))
        self.tokens = (self.grid[0] // patch_size, self.grid[1] // patch_size)
        self.kv_heads = kv_heads
        self.head_width = width // heads
        self.is_global = [(block - global_offset) % global_every == 0 for block in range(depth)]
        self.slots = [global_slots if far else local_slots for far in self.is_global]
        self.strides = [global_stride if far else 1 for far in self.is_global]
        self.denoise_step_emb = _LevelEmbedding(width)
        self.ctrl_emb = nn.ModuleDict({"mlp": BiasFreePerceptron(buttons + CONTROL_VALUES, width * mlp_ratio, width)})
        self.modulation = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(6))
        blocks = []
        for block in range(depth):
            reads_prompt = bool(prompt_width) and block % prompt_every == 0
            blocks.append(
                WaypointBlock(
                    width=width,
                    heads=heads,
                    kv_heads=kv_heads,
                    mlp_ratio=mlp_ratio,
                    prompt_width=prompt_width if reads_prompt else 0,
                    reads_control=block % control_every == 0,
                    gated=gated,
                )
            )
        self.transformer = _Blocks(blocks)
        self.patchify = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.unpatchify = nn.Linear(width, channels * patch_size**2)
        self.out_norm = nn.ModuleDict({"fc": nn.Linear(width, 2 * width, bias=False)})
        self.prompt = nn.Parameter(torch.zeros(prompt_tokens, prompt_width)) if prompt_width else None

    def empty_memory(self, batch: int) -> tuple[LayerMemory, ...]:
        """Return the memory of all blocks before the first frame."""
        count = self.tokens[0] * self.tokens[1]
        like = self.unpatchify.weight
        return tuple(LayerMemory.empty(batch, self.kv_heads, m, count, self.head_width, like) for m in self.slots)

    def forward(
        self, latent: Tensor, sigma: float, action: Tensor, frame: Tensor, memory: tuple[LayerMemory, ...]
    ) -> tuple[Tensor, tuple[LayerMemory, ...]]:
        """Predict the velocity of a frame.

        Args:
            latent: noisy, float [b, h, w, c].
            sigma: share of noise in it.
            action: float [b, buttons + 3], that leads to it.
            frame: int64 [b], its number.
            memory: of the frames before it.

        Returns:
            Float [b, h, w, c], and the memory with this frame.
        """
        dtype, p = self.unpatchify.weight.dtype, self.patch_size
        x = self.patchify(rearrange(latent.to(dtype), "b h w c -> b c h w")).flatten(2).transpose(1, 2)
        level = self.denoise_step_emb(latent.new_full((len(latent),), sigma)).to(dtype)
        control = self.ctrl_emb["mlp"](action.to(dtype))
        angles = self._angles(frame)
        after = []
        for number, block in enumerate(self.transformer.blocks):
            x, remembered = block(
                x, level, control, self.modulation, self.prompt, angles, frame, memory[number], self.strides[number]
            )
            after.append(remembered)
        scale, shift = self.out_norm["fc"](F.silu(level))[:, None].chunk(2, dim=-1)
        patches = self.unpatchify(F.silu(_norm(x) * (1 + scale) + shift))
        velocity = rearrange(patches, "b (h w) (c p q) -> b (h p) (w q) c", h=self.tokens[0], p=p, q=p)
        return velocity, tuple(after)

    def _angles(self, frame: Tensor) -> Tensor:
        """Angles by which queries and keys turn: float32 [b, 1, n, head width / 2], of columns, rows and the frame."""
        exact: dict[str, Any] = {"device": frame.device, "dtype": torch.float32}
        eighth, (height, width) = self.head_width // 8, self.tokens
        places = torch.linspace(1.0, min(self.tokens) * NYQUIST_SHARE / 2, eighth // 2, **exact) * math.pi
        rows, columns = (
            (torch.linspace(-1 + 1 / side, 1 - 1 / side, side, **exact)[:, None] * places).repeat_interleave(2, dim=-1)
            for side in self.tokens
        )
        grid = torch.cat((columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)), dim=-1).flatten(0, 1)
        rates = 1.0 / FREQUENCY_BASE ** (torch.arange(0, 2 * eighth, 2, **exact) / (2 * eighth))
        times = (frame[:, None].float() * rates).repeat_interleave(2, dim=-1)
        angles = (grid.expand(len(frame), -1, -1), times[:, None].expand(-1, len(grid), -1))
        return torch.cat(angles, dim=-1)[:, None]


class _Blocks(nn.Module):
    def __init__(self, blocks: list[WaypointBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class WaypointBlock(nn.Module):
    """Attention to remembered frames, to the prompt, the action, and a perceptron: [b, n, d].

    Args:
        width, heads, kv_heads, mlp_ratio, gated: see ``WaypointDiT``.
        prompt_width: of the prompt; 0 for blocks that do not read it.
        reads_control: whether the block reads the action.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        mlp_ratio: int,
        prompt_width: int,
        reads_control: bool,
        gated: bool,
    ) -> None:
        super().__init__()
        self.attn = _MemoryAttention(width, heads, kv_heads, gated)
        self.mlp = BiasFreePerceptron(width, width * mlp_ratio, width)
        self.cond_head = nn.ParameterDict({"bias_in": torch.zeros(width)})
        self.prompt_cross_attn = _PromptAttention(width, heads, prompt_width) if prompt_width else None
        control = BiasFreePerceptron(2 * width, width, width)
        self.ctrl_mlpfusion = nn.ModuleDict({"mlp": control}) if reads_control else None

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        control: Tensor,
        modulation: nn.ModuleList,
        prompt: Tensor | None,
        angles: Tensor,
        frame: Tensor,
        memory: LayerMemory,
        stride: int,
    ) -> tuple[Tensor, LayerMemory]:
        """Process a frame; see ``WaypointDiT``. Returns it and the memory with it."""
        given = F.silu(level + self.cond_head["bias_in"])[:, None]
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = (part(given) for part in modulation)
        attended, after = self.attn(_norm(x) * (1 + scale) + shift, angles, frame, memory, stride)
        x = x + gate * attended
        if self.prompt_cross_attn is not None and prompt is not None:
            x = x + self.prompt_cross_attn(_norm(x), _norm(prompt))
        if self.ctrl_mlpfusion is not None:
            fused = torch.cat((_norm(x), _norm(control)[:, None].expand_as(x)), dim=-1)
            x = x + self.ctrl_mlpfusion["mlp"](fused)
        return x + mlp_gate * self.mlp(_norm(x) * (1 + mlp_scale) + mlp_shift), after


class BiasFreePerceptron(nn.Module):
    """Two linear layers without biases, with a SiLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.fc2(F.silu(self.fc1(x)))


class _MemoryAttention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        kv_width = width // heads * kv_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.gate_proj = nn.Linear(heads, heads, bias=False) if gated else None

    def forward(
        self, x: Tensor, angles: Tensor, frame: Tensor, memory: LayerMemory, stride: int
    ) -> tuple[Tensor, LayerMemory]:
        q = _turn(_norm(_split_heads(self.q_proj(x), self.heads)), angles)
        k = _turn(_norm(_split_heads(self.k_proj(x), self.kv_heads)), angles)
        v = _split_heads(self.v_proj(x), self.kv_heads)
        keys, values, mask = memory.attended(k, v, frame, stride)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        if self.gate_proj is not None:
            gates = torch.sigmoid(self.gate_proj(x[..., : self.heads]))
            attended = attended * gates.transpose(1, 2)[..., None]
        return self.out_proj(_merge_heads(attended)), memory.remember(k, v, frame, stride)


class _PromptAttention(nn.Module):
    def __init__(self, width: int, heads: int, prompt_width: int) -> None:
        super().__init__()
        head_width = width // heads
        if prompt_width % head_width:
            raise ValueError(f"prompt_width={prompt_width} must be a multiple of the width of a head, {head_width}")
        self.heads = prompt_width // head_width
        self.q_proj = nn.Linear(width, prompt_width, bias=False)
        self.k_proj = nn.Linear(prompt_width, prompt_width, bias=False)
        self.v_proj = nn.Linear(prompt_width, prompt_width, bias=False)
        self.out_proj = nn.Linear(prompt_width, width, bias=False)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        q = _norm(_split_heads(self.q_proj(x), self.heads))
        k = _norm(_split_heads(self.k_proj(prompt), self.heads)).expand(len(x), -1, -1, -1)
        v = _split_heads(self.v_proj(prompt), self.heads).expand(len(x), -1, -1, -1)
        return self.out_proj(_merge_heads(F.scaled_dot_product_attention(q, k, v)))


class _LevelEmbedding(nn.Module):
    """Embed noise levels: float [b] -> [b, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = BiasFreePerceptron(LEVEL_CHANNELS, 4 * width, width)

    def forward(self, sigma: Tensor) -> Tensor:
        exact: dict[str, Any] = {"device": sigma.device, "dtype": torch.float32}
        frequencies = torch.logspace(0, -1, LEVEL_CHANNELS // 2, base=FREQUENCY_BASE, **exact)
        angles = (sigma.float() * LEVEL_SCALE)[:, None] * frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1) * math.sqrt(2)
        return self.mlp(waves.to(self.mlp.fc1.weight.dtype))


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of channels [b, heads, n, c] by angles [b, 1, n, c / 2]; first and second ones end in two halves."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
