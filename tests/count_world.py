"""A world without networks and with predictable frames, shared by the tests of the environment interfaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from factories import composite_space
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_uniform, world_seeds
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace

SIZE = 36  # the smallest image that Stable-Baselines3 accepts


class CountState(NamedTuple):
    background: Tensor
    count: Tensor
    seed: Tensor
    latent: Tensor


class CountWorld(Simulator):
    """Counts up by the action, and terminates at 7 or more; the reward is the count.

    A continuous action counts as 1, and a composite one as its number of held keys.

    The latent is the context's value, the count, and noise from seed and count (0 to 255). A world of ``"pictures"``
    has them in its pixels (0, 0), (0, 1) and (0, 2), one of ``"vectors"`` has them as observation, and one of
    ``"latents"`` takes images as contexts and shows no frames.
    """

    def __init__(self, kind: str = "discrete", shows: str = "pictures") -> None:
        context = ObservationSpace.vector(3) if shows == "vectors" else ObservationSpace.image(SIZE, SIZE)
        observation = ObservationSpace.latent(3) if shows == "latents" else context
        actions = composite_space() if kind == "composite" else ActionSpace(kind, 4)
        self.spec = SimulatorSpec(observation, actions, fps=12.0, context_frames=2, context=context)
        shape = context.shape
        backgrounds = torch.arange(1, 6, dtype=context.dtype)
        self.starts: Tensor | None = backgrounds.view(5, 1, *[1] * len(shape)).expand(5, 2, *shape).clone()
        self.decoded: list[bool] = []

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[CountState, Tensor]:
        self.check_context(context)
        batch = len(context)
        backgrounds = context.reshape(*context.shape[:2], -1)[:, -1, 0].float()
        state = self._make_state(backgrounds, torch.zeros(batch, dtype=torch.int64), world_seeds(seed, batch))
        return state, context[:, -1] if self.spec.observation.is_latent else self._render(state)

    def step(self, state: CountState, action: Tensor, decode: bool = True) -> tuple[CountState, StepOutput]:
        self.check_action(action, len(state.count))
        self.decoded.append(decode)
        held = action[:, 1:5].sum(1).long() if self.spec.actions.is_composite else 1
        count = state.count + (action if self.spec.actions.kind == "discrete" else held)
        next_state = self._make_state(state.background, count, state.seed)
        frame = self._render(next_state) if decode and not self.spec.observation.is_latent else None
        return next_state, StepOutput(frame, next_state.latent, count.float(), count >= 7)

    def _make_state(self, background: Tensor, count: Tensor, seed: Tensor) -> CountState:
        noise = (seeded_uniform(fold_in(seed, count), 1)[:, 0] * 256).floor()
        return CountState(background, count, seed, torch.stack([background, count.float(), noise], dim=1))

    def _render(self, state: CountState) -> Tensor:
        if self.spec.context.is_vector:
            return state.latent.clone()
        frame = torch.zeros(len(state.count), SIZE, SIZE, 3, dtype=torch.uint8)
        frame[:, 0, :3] = state.latent[:, :, None].to(torch.uint8)
        return frame
