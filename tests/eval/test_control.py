"""ΔPSNR and the loss under shuffled actions, for worlds with known values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.eval.control import delta_psnr, shuffled_action_loss
from vwm.eval.rollouts import open_loop_rollout, random_action_sequences
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.simulator import GenieSimulator


def rollouts_with_own_and_random_actions(world: Simulator, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    seeds = world_seeds(0, len(frames))
    random = random_action_sequences(world.spec.actions, seeds, actions.shape[1])
    return tuple(open_loop_rollout(world, frames, a, 2, seeds, 6, "test") for a in (actions, random))  # type: ignore[return-value]


def test_delta_psnr_is_large_where_actions_have_an_effect(
    make_world: Callable[..., Simulator], rolling_clips: tuple[Tensor, Tensor]
) -> None:
    frames, actions = rolling_clips
    predicted, random = rollouts_with_own_and_random_actions(make_world(error=1), frames, actions)
    delta = delta_psnr(frames[:, 2:], predicted, random)
    assert len(delta.by_clip) == 5
    assert delta.excluded == [0] * 5
    assert delta.by_clip[-1].mean > 20
    # Under the true actions every pixel is off by one level.
    error = (frames[:, 2:].int() - random.int()).square().double().mean()
    assert float(delta.over_set.mean()) == pytest.approx(10 * math.log10(float(error)), abs=1.0)
    swapped = delta_psnr(frames[:, 2:], random, predicted)
    assert swapped.by_clip[-1].mean == pytest.approx(-delta.by_clip[-1].mean)


def test_delta_psnr_is_zero_where_actions_have_no_effect(
    make_world: Callable[..., Simulator], rolling_clips: tuple[Tensor, Tensor]
) -> None:
    frames, actions = rolling_clips
    predicted, random = rollouts_with_own_and_random_actions(make_world(error=1, uses_actions=False), frames, actions)
    assert [e.mean for e in delta_psnr(frames[:, 2:], predicted, random).by_clip] == [0.0] * 5


def test_delta_psnr_excludes_and_counts_exact_clips() -> None:
    truth = torch.zeros(3, 1, 2, 2, 3, dtype=torch.uint8)
    predicted, random = truth + torch.tensor([0, 1, 1], dtype=torch.uint8)[:, None, None, None, None], truth + 10
    delta = delta_psnr(truth, predicted, random)
    assert delta.excluded == [1]
    assert delta.by_clip[0].n == 2
    assert delta.by_clip[0].mean == pytest.approx(20.0)
    assert float(delta.over_set[0]) == pytest.approx(10 * math.log10(100 / (2 / 3)))


class Oracle(torch.nn.Module):
    """Genie dynamics in which every token equals the action that leads to its frame with probability ``p``."""

    def __init__(self, codes: int, p: float, uses_actions: bool = True) -> None:
        super().__init__()
        self.places, self.mask_token = torch.nn.Parameter(torch.zeros(1)), codes
        self.codes, self.p, self.uses_actions = codes, p, uses_actions
        self.frames_per_latent = 1
        self.observed_actions: list[Any] = []

    def init_state(self, batch: int) -> None:
        return None

    def observe(self, state: None, tokens: Tensor, actions: Tensor | None) -> None:
        self.observed_actions.append(actions)

    def predict_logits(self, state: None, tokens: Tensor, actions: Tensor) -> Tensor:
        assert (tokens == self.mask_token).all()
        other_probability = (1 - self.p) / (self.codes - 1)
        if not self.uses_actions:
            actions = torch.zeros_like(actions)
        probability = other_probability + (self.p - other_probability) * F.one_hot(actions, self.codes)
        return probability.double().log()[:, :, None].expand(-1, -1, tokens.shape[-1], -1)


def test_shuffled_actions_raise_the_loss_to_that_of_wrong_actions(genie: Callable[..., GenieSimulator]) -> None:
    actions = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 3]])  # the actions of the next clip always differ
    tokens = torch.cat((torch.zeros(4, 1, dtype=torch.int64), actions), dim=1)[..., None, None].expand(-1, -1, 2, 3)
    world, oracle = genie(), Oracle(codes=4, p=0.7)
    world.dynamics = oracle
    cost = shuffled_action_loss(world, tokens, actions, batch_size=3)
    assert cost is not None
    assert cost.own == pytest.approx(-math.log(0.7))
    assert cost.shuffled == pytest.approx(-math.log(0.1))
    assert torch.equal(oracle.observed_actions[1], actions[:3, :1])  # past actions are not shuffled


def test_shuffled_actions_do_not_raise_the_loss_if_the_model_ignores_actions(
    genie: Callable[..., GenieSimulator],
) -> None:
    tokens = torch.randint(0, 4, (4, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    world = genie()
    world.dynamics = Oracle(codes=4, p=0.7, uses_actions=False)
    cost = shuffled_action_loss(world, tokens, torch.tensor([[0, 1], [1, 2], [2, 0], [3, 3]]), batch_size=2)
    assert cost is not None
    assert cost.own == cost.shuffled


def test_a_single_clip_cannot_be_shuffled(genie: Callable[..., GenieSimulator]) -> None:
    assert shuffled_action_loss(genie(), torch.zeros(1, 3, 2, 2, dtype=torch.int64), torch.zeros(1, 2), 1) is None


def test_the_loss_under_true_actions_equals_the_training_loss_with_a_full_mask(
    genie: Callable[..., GenieSimulator],
) -> None:
    torch.manual_seed(0)
    world, dynamics = genie(), MaskGITDynamics(16, 4, 3, width=16, depth=2, heads=2, window=3).eval()
    world.dynamics = dynamics
    tokens, actions = torch.randint(0, 16, (3, 5, 2, 2)), torch.randint(0, 3, (3, 4))
    cost = shuffled_action_loss(world, tokens, actions, batch_size=2)
    flat = tokens.flatten(2)
    logits = dynamics(flat, actions, torch.ones_like(flat[:, 1:], dtype=torch.bool))
    assert cost is not None
    assert cost.own == pytest.approx(F.cross_entropy(logits.flatten(0, 2), flat[:, 1:].flatten()).item(), rel=1e-5)


def test_a_family_without_a_transition_loss_has_no_shuffle_cost(brightness_world: VideoSimulator) -> None:
    assert shuffled_action_loss(brightness_world, torch.zeros(3, 4, 16, 16, 3), torch.zeros(3, 3, 2), 2) is None
