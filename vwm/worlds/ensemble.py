"""Several learned worlds of one game as one world that knows where it is unsure.

Where members that learned from the same recording disagree, none of them has seen enough (Chua et al., PETS, arXiv
1805.12114). Taking the disagreement from the reward keeps agents and planners where the worlds are right (MOPO, arXiv
2005.13239), ending the episode there keeps them out altogether (MOReL, arXiv 2005.05951).

Legend: b worlds, m members.
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
"""What a world's seed is folded with for drawing the member that it follows."""


class EnsembleState(NamedTuple):
    """One world a batch entry.

    Attributes:
        members: every member's state.
        latent: of the followed member's place, see ``Simulator.latent``.
        followed: int64 [b], the member that shows what happens; one for the whole of an episode.
        uncertainty: float [b], of the last step.
        seed: int64 [b].
    """

    members: tuple[State, ...]
    latent: Tensor
    followed: Tensor
    uncertainty: Tensor
    seed: Tensor


class EnsembleSimulator(Simulator):
    """See ``Simulator``. Every world follows one member; the others say how far it is to be trusted.

    All members live through the same actions, each in its own state, so that disagreement grows with the horizon where
    their worlds part. It is the deviation between members of what they show, in shares of its whole range (of vectors:
    in their own unit), and of their rewards, added up.

    Args:
        members: two or more worlds of the same actions and observations; they must have pictures or be of vectors.
        penalty: by which the uncertainty is taken from the reward.
        limit: of the uncertainty, beyond which a world ends; None never ends for that. An end costs nothing beyond what
            would have been earned: where rewards are negative it is a gift, and ``penalty`` is what keeps agents away.
        follow: ``"drawn"``, every world a member of its own; ``"first"``, all the first one, which the others only
            doubt: for who reads that one's features, which no other member shares.

    Raises:
        ValueError: the members do not fit each other.
    """

    def __init__(
        self,
        members: Sequence[Simulator],
        penalty: float = 0.0,
        limit: float | None = None,
        follow: Literal["drawn", "first"] = "drawn",
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"disagreement takes two worlds or more, got {len(members)}")
        first = members[0]
        for other in members[1:]:
            if (first.spec.observation, first.spec.context) != (other.spec.observation, other.spec.context):
                raise ValueError(
                    f"members differ in their observations: {first.spec.observation} and {other.spec.observation}"
                )
            if (first.spec.actions.kind, first.spec.actions.size) != (other.spec.actions.kind, other.spec.actions.size):
                raise ValueError(f"members differ in their actions: {first.spec.actions} and {other.spec.actions}")
        if first.spec.observation.is_latent:
            raise ValueError("worlds of latents alone have nothing in common to disagree on: train them with a decoder")
        if penalty < 0 or (limit is not None and limit <= 0):
            raise ValueError(f"penalty must be 0 or more and limit above 0, got {penalty} and {limit}")
        self.members = tuple(members)
        self.penalty = penalty
        self.limit = limit
        self.follow = follow
        self.starts = first.starts
        self.spec = replace(
            first.spec,
            context_frames=max(member.spec.context_frames for member in members),
            stochastic=follow == "drawn" or any(member.spec.stochastic for member in members),
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
        begun = [member.reset(context, seeds, context_actions) for member in self.members]
        states, frames = tuple(state for state, _ in begun), torch.stack([frame for _, frame in begun])
        followed = fold_in(seeds, MEMBER_STREAM) % (1 if self.follow == "first" else len(self.members))
        latent = self._select_member([m.latent(s) for m, s in zip(self.members, states, strict=True)], followed)
        nothing = torch.zeros(len(context), device=frames.device)
        return EnsembleState(states, latent, followed, nothing, seeds), self._select_member(frames, followed)

    def step(self, state: EnsembleState, action: Tensor, decode: bool = True) -> tuple[EnsembleState, StepOutput]:
        """See ``Simulator.step``; pixels are drawn either way, for they are what is compared."""
        self.check_action(action, len(state.seed))
        stepped = [m.step(s, action) for m, s in zip(self.members, state.members, strict=True)]
        said = [output for _, output in stepped]
        frames = torch.stack([self._shown(output) for output in said])
        rewards = torch.stack([output.reward for output in said])
        uncertainty = self._disagreement(frames, rewards)
        latent = self._select_member([output.latent for output in said], state.followed)
        terminated = self._select_member(torch.stack([output.terminated for output in said]), state.followed)
        if self.limit is not None:
            terminated = terminated | (uncertainty > self.limit)
        reward = self._select_member(rewards, state.followed) - self.penalty * uncertainty
        after = EnsembleState(tuple(s for s, _ in stepped), latent, state.followed, uncertainty, state.seed)
        frame = self._select_member(frames, state.followed) if decode else None
        return after, StepOutput(frame, latent, reward, terminated)

    def features(self, state: EnsembleState) -> Tensor:
        """See ``ProvidesFeatures.features``: those of the first member.

        Raises:
            ValueError: worlds follow drawn members, or the first member has no features.
        """
        first = self.members[0]
        if self.follow != "first" or not isinstance(first, ProvidesFeatures):
            raise ValueError(
                "an ensemble keeps no features that all members share: follow the first, or observe frames"
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
        """[m, b, ...] and [m, b] -> [b]."""
        scale = 255.0 if self.spec.observation.is_image else 1.0
        shown = (frames.float() / scale).std(0).flatten(1).square().mean(1).sqrt()
        return shown + rewards.float().std(0)

    @staticmethod
    def _shown(output: StepOutput) -> Tensor:
        assert output.frame is not None, "a step with decode=True shows a frame"
        return output.frame

    @staticmethod
    def _select_member(values: Tensor | Sequence[Tensor], followed: Tensor) -> Tensor:
        """[m, b, ...] -> [b, ...], each world's own member."""
        stacked = values if isinstance(values, Tensor) else torch.stack(list(values))
        return stacked[followed, torch.arange(len(followed), device=followed.device)]
