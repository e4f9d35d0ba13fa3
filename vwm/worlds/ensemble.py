"""An ensemble of simulators of one environment as one simulator that measures its uncertainty.

Where members that were trained on the same recording disagree, none of them has seen enough data (Chua et al., PETS,
arXiv 1805.12114). Subtracting the disagreement from the reward keeps agents and planners where the simulators are
accurate (MOPO, arXiv 2005.13239); terminating the episode there keeps them out altogether (MOReL, arXiv 2005.05951).

Legend: b simulations, m members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vwm.core.capabilities import ProvidesFeatures, ReconstructsFrames
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, State, StepOutput

MEMBER_STREAM = -9
"""The stream of random numbers that selects the member that a simulation follows."""


class EnsembleState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        members: every member's state.
        latent: of the followed member, see ``Simulator.latent``.
        member_index: int64 [b], the member whose output is shown; the same throughout an episode.
        uncertainty: float [b], of the last step.
        seed: int64 [b].
    """

    members: tuple[State, ...]
    latent: Tensor
    member_index: Tensor
    uncertainty: Tensor
    seed: Tensor


class EnsembleSimulator(Simulator):
    """Several simulators as one: see ``Simulator``. A simulation follows one member; the others measure uncertainty.

    All members take the same actions, each in its own state, so that disagreement grows with the horizon where their
    predictions diverge. It is the standard deviation over members of their observations, as a share of the range of
    pixels (vectors: in their own unit), plus that of their rewards.

    Args:
        members: two or more simulators of the same actions and observations, which must be images or vectors.
        uncertainty_penalty: factor of the uncertainty that is subtracted from the reward.
        uncertainty_limit: uncertainty above which a simulation terminates; None disables it. A termination costs the
            rewards that would have followed: where these are negative it is an advantage, and only
            ``uncertainty_penalty`` keeps agents away.
        followed_member: ``"random"``, every simulation follows a random member; ``"first"``, all follow the first one,
            for policies that read its features, which the other members do not share.

    Raises:
        ValueError: the members do not fit each other, or a penalty or limit is out of range.
    """

    def __init__(
        self,
        members: Sequence[Simulator],
        uncertainty_penalty: float = 0.0,
        uncertainty_limit: float | None = None,
        followed_member: Literal["random", "first"] = "random",
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"disagreement requires two simulators or more, got {len(members)}")
        first = members[0]
        for other in members[1:]:
            if (first.spec.observation, first.spec.context) != (other.spec.observation, other.spec.context):
                raise ValueError(
                    f"members differ in their observations: {first.spec.observation} and {other.spec.observation}"
                )
            if first.spec.frames_per_step != other.spec.frames_per_step:
                raise ValueError(
                    f"members show {first.spec.frames_per_step} and {other.spec.frames_per_step} frames per step"
                )
            if not first.spec.actions.fits(other.spec.actions):
                raise ValueError(f"members differ in their actions: {first.spec.actions} and {other.spec.actions}")
        if first.spec.observation.is_latent:
            raise ValueError("simulators of latents only show nothing to compare: train them with a decoder")
        if uncertainty_penalty < 0 or (uncertainty_limit is not None and uncertainty_limit <= 0):
            raise ValueError(
                "uncertainty_penalty must be 0 or more and uncertainty_limit above 0, got "
                f"{uncertainty_penalty} and {uncertainty_limit}"
            )
        self.members = tuple(members)
        self.uncertainty_penalty = uncertainty_penalty
        self.uncertainty_limit = uncertainty_limit
        self.followed_member = followed_member
        self.starts = first.starts
        self.spec = replace(
            first.spec,
            context_frames=max(member.spec.context_frames for member in members),
            stochastic=followed_member == "random" or any(member.spec.stochastic for member in members),
        )

    @property
    def device(self) -> torch.device:
        """See ``Simulator.device``: the first member's; the others must have the same."""
        return self.members[0].device

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[EnsembleState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        seeds = world_seeds(seed, len(context), self.device)
        started = [member.reset(context, seeds, context_actions) for member in self.members]
        states, frames = tuple(state for state, _ in started), torch.stack([frame for _, frame in started])
        index = fold_in(seeds, MEMBER_STREAM) % (1 if self.followed_member == "first" else len(self.members))
        latent = self._select_member([m.latent(s) for m, s in zip(self.members, states, strict=True)], index)
        zeros = torch.zeros(len(context), device=frames.device)
        return EnsembleState(states, latent, index, zeros, seeds), self._select_member(frames, index)

    def step(self, state: EnsembleState, action: Tensor, decode: bool = True) -> tuple[EnsembleState, StepOutput]:
        """See ``Simulator.step``; pixels are always decoded, since they are compared."""
        self.check_action(action, len(state.seed))
        stepped = [m.step(s, action) for m, s in zip(self.members, state.members, strict=True)]
        outputs = [output for _, output in stepped]
        frames = torch.stack([self._require_frame(output) for output in outputs])
        rewards = torch.stack([output.reward for output in outputs])
        uncertainty = self._disagreement(frames, rewards)
        latent = self._select_member([output.latent for output in outputs], state.member_index)
        terminated = self._select_member(torch.stack([output.terminated for output in outputs]), state.member_index)
        if self.uncertainty_limit is not None:
            terminated = terminated | (uncertainty > self.uncertainty_limit)
        reward = self._select_member(rewards, state.member_index) - self.uncertainty_penalty * uncertainty
        after = EnsembleState(tuple(s for s, _ in stepped), latent, state.member_index, uncertainty, state.seed)
        frame = self._select_member(frames, state.member_index) if decode else None
        return after, StepOutput(frame, latent, reward, terminated)

    def features(self, state: EnsembleState) -> Tensor:
        """See ``ProvidesFeatures.features``: those of the first member.

        Raises:
            ValueError: simulations follow random members, or the first member has no features.
        """
        first = self.members[0]
        if self.followed_member != "first" or not isinstance(first, ProvidesFeatures):
            raise ValueError(
                "an ensemble keeps no features that all members share: set followed_member='first', or observe frames"
            )
        return first.features(state.members[0])

    def reconstruct(self, frames: Tensor, state: State | None = None) -> tuple[State, Tensor]:
        """See ``ReconstructsFrames.reconstruct``: by the first member; unchanged where that one has no tokenizer."""
        first = self.members[0]
        return first.reconstruct(frames, state) if isinstance(first, ReconstructsFrames) else ((), frames)

    def uncertainty(self, state: EnsembleState) -> Tensor:
        """See ``EstimatesUncertainty.uncertainty``: the members' disagreement on the last step."""
        return state.uncertainty

    def _disagreement(self, frames: Tensor, rewards: Tensor) -> Tensor:
        """Measure the disagreement on observations [m, b, ...] and rewards [m, b]: [b]."""
        scale = 255.0 if self.spec.observation.is_image else 1.0
        observations = (frames.float() / scale).std(0).flatten(1).square().mean(1).sqrt()
        return observations + rewards.float().std(0)

    @staticmethod
    def _require_frame(output: StepOutput) -> Tensor:
        assert output.frame is not None, "a step with decode=True shows a frame"
        return output.frame

    @staticmethod
    def _select_member(values: Tensor | Sequence[Tensor], index: Tensor) -> Tensor:
        """Select each simulation's own member: [m, b, ...] -> [b, ...]."""
        stacked = values if isinstance(values, Tensor) else torch.stack(list(values))
        return stacked[index, torch.arange(len(index), device=index.device)]
