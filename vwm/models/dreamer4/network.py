"""The dynamics of Dreamer 4 in PyTorch: predicts clean latent tokens from noisy ones (arXiv 2509.24527).

Each frame has tokens of its action, of its noise, of its latents, registers, and agent tokens that heads read.

Legend: b batch, t time, s past frames, n latent tokens of a frame, c their channels, d width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frame_window import known_causal_mask
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.dreamer4.block_causal import BlockCausalTransformer, PastKeys, TimeAttention, add_positions

AgentAttention = Literal["isolated", "reading", "mixed"]
AGENT_ATTENTION: tuple[AgentAttention, ...] = ("isolated", "reading", "mixed")


class Noising(NamedTuple):
    """How noisy frames are.

    Attributes:
        signal: int64 [b, t], share of the data in units of 1 / ``signal_levels``.
        step: int64 [b, t], binary logarithm of the number of sampling steps.
    """

    signal: Tensor
    step: Tensor


class Dreamer4Dynamics(ModelMixin, ConfigMixin):
    """Predict the clean latents of frames, for the actions of one task; the defaults are the first generation's.

    The names of the weights are the published ones, except ``agents``: what the task gives to the agent tokens.

    Args:
        latents: latent tokens of the tokenizer in a frame.
        channels: of a latent token.
        packing: latent tokens that are one token here.
        width: d.
        heads: of the attention.
        depth: number of layers.
        hidden: of their perceptrons.
        time_every: which layers attend in time.
        registers: number of register tokens.
        agent_tokens: number of agent tokens.
        agent_attention: ``"isolated"``: agent tokens attend to each other alone; ``"reading"``: to all tokens, and none
            to them; ``"mixed"``: all to all.
        signal_levels: number of noise levels, a power of two.
        action_inputs: numbers of an action that the weights take, of which a task uses the first.
        rotary: second generation: see ``BlockCausalTransformer``; the noise is one token, its level and step half of
            the channels each, and a frame at the beginning of the window keeps its action.
        scaled_positions: see ``add_positions``.
        window: frames that attention in time sees, the predicted one included.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        latents: int = 16,
        channels: int = 32,
        packing: int = 2,
        width: int = 512,
        heads: int = 4,
        depth: int = 8,
        hidden: int = 2048,
        time_every: int = 1,
        registers: int = 4,
        agent_tokens: int = 1,
        agent_attention: AgentAttention = "isolated",
        signal_levels: int = 8,
        action_inputs: int = 16,
        rotary: bool = False,
        scaled_positions: bool = True,
        window: int = 25,
    ) -> None:
        super().__init__()
        if packing < 1 or latents % packing:
            raise ValueError(f"latents={latents} must be a multiple of packing={packing}")
        if signal_levels < 2 or signal_levels & (signal_levels - 1):
            raise ValueError(f"signal_levels={signal_levels} must be a power of two above 1")
        if agent_attention not in AGENT_ATTENTION:
            raise ValueError(f"agent_attention={agent_attention!r} must be one of {', '.join(AGENT_ATTENTION)}")
        if window < 2 or width % 2:
            raise ValueError(f"window={window} must be 2 or more, and width={width} even")
        self.grid = (1, latents)
        self.channels = channels
        self.tokens = latents // packing
        self.signal_levels = signal_levels
        self.action_inputs = action_inputs
        self.rotary = rotary
        self.scaled_positions = scaled_positions
        self.window = window
        noise_width = width // 2 if rotary else width
        self.spatial_proj = nn.Linear(channels * packing, width)
        self.register_tokens = nn.Parameter(torch.randn(registers, width) * 0.02)
        self.action_encoder = _ActionEncoder(action_inputs, width)
        self.step_embed = nn.Embedding(signal_levels.bit_length(), noise_width)
        self.signal_embed = nn.Embedding(signal_levels + 1, noise_width)
        self.transformer = BlockCausalTransformer(width, heads, depth, hidden, time_every, rotary)
        self.flow_x_head = nn.Linear(width, channels * packing)
        self.agents = nn.Parameter(torch.zeros(agent_tokens, width))
        self.agent_attention = agent_attention
        self.first_latent = 2 if rotary else 3

    @property
    def clean_signal(self) -> int:
        """The signal level that stands for frames without noise."""
        return self.signal_levels if self.rotary else self.signal_levels - 1

    def forward(
        self, latents: Tensor, noising: Noising, actions: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the clean latents of frames, each from itself and the frames before it.

        Args:
            latents: noisy, float [b, t, 1, n, c].
            noising: see there.
            actions: float [b, t, a], that led to the frames.
            known: bool [b, t], False for first frames that are none; None where all count.

        Returns:
            Float [b, t, 1, n, c], and the agent tokens, float [b, t, agent tokens, d].
        """
        return self._run(latents, noising, actions, self._all_known(latents, known), None)[:2]

    def encode_past(self, latents: Tensor, noising: Noising, actions: Tensor, known: Tensor) -> list[PastKeys | None]:
        """Return keys and values of the frames of ``forward``, for every layer that attends in time."""
        return self._run(latents, noising, actions, known, None)[2]

    def predict(
        self, past: list[PastKeys | None], latents: Tensor, noising: Noising, actions: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict the frames after past ones: what ``forward`` predicts for the last frames of all of them.

        Args:
            past: of s frames, see ``encode_past``.
            latents, noising, actions: of the t frames after them; see ``forward``.
            known: bool [b, s + t], of all frames.
        """
        return self._run(latents, noising, actions, known, past)[:2]

    def _run(
        self,
        latents: Tensor,
        noising: Noising,
        actions: Tensor,
        known: Tensor,
        past: list[PastKeys | None] | None,
    ) -> tuple[Tensor, Tensor, list[PastKeys | None]]:
        frames, total = latents.shape[1], known.shape[1]
        positions = (known.long().cumsum(1) - 1).clamp(min=0)[:, total - frames :]
        if not self.rotary:  # the first frame of a window has no action
            actions = actions * (positions > 0)[..., None]
        tokens = self._tokens(latents, noising, actions)
        if not self.rotary:
            tokens = add_positions(tokens, positions, self.scaled_positions)
        time = TimeAttention(positions, known_causal_mask(frames, total, known, latents.device))
        x, keys = self.transformer(tokens, self._space_mask(tokens), time, past)
        last = self.first_latent + self.tokens
        predicted = self.flow_x_head(x[:, :, self.first_latent : last]).reshape(latents.shape)
        return predicted, x[:, :, x.shape[2] - len(self.agents) :], keys

    def _tokens(self, latents: Tensor, noising: Noising, actions: Tensor) -> Tensor:
        shape = latents.shape[:2]
        dtype = self.spatial_proj.weight.dtype
        packed = latents.to(dtype).reshape(*shape, self.tokens, -1)
        signal, step = self.signal_embed(noising.signal), self.step_embed(noising.step)
        noise = torch.cat((signal, step), dim=-1)[:, :, None] if self.rotary else torch.stack((signal, step), dim=2)
        constant = torch.cat((self.register_tokens, self.agents)).expand(*shape, -1, -1)
        action = self.action_encoder(actions.to(dtype))[:, :, None]
        return torch.cat((action, noise, self.spatial_proj(packed), constant), dim=2)

    def _space_mask(self, tokens: Tensor) -> Tensor:
        """bool [n, n], True where a token attends."""
        count = tokens.shape[2]
        is_agent = torch.arange(count, device=tokens.device) >= count - len(self.agents)
        if self.agent_attention == "mixed":
            return torch.ones(count, count, dtype=torch.bool, device=tokens.device)
        if self.agent_attention == "reading":
            return is_agent[:, None] | ~is_agent
        return is_agent[:, None] == is_agent

    def _all_known(self, latents: Tensor, known: Tensor | None) -> Tensor:
        return torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device) if known is None else known


class _ActionEncoder(nn.Module):
    """Embed actions: [b, t, a] -> [b, t, d]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(width) * 0.02)
        self.fc1 = nn.Linear(inputs, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, actions: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(actions.clamp(-1, 1)))) + self.base
