"""Rollouts of worlds with known dynamics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.core.spaces import ActionSpace
from vwm.eval.eval_clips import EvalClips
from vwm.eval.metrics import set_psnr
from vwm.eval.rollouts import open_loop_rollout, random_action_sequences, read_clip_actions, repeat_last_frame
from vwm.models.genie.simulator import GenieSimulator


@pytest.mark.parametrize("context", [1, 2, 4])
def test_true_actions_lead_from_the_context_to_the_true_frames(
    make_world: Callable[..., Simulator], rolling_clips: tuple[Tensor, Tensor], context: int
) -> None:
    frames, actions = rolling_clips
    predicted = open_loop_rollout(make_world(), frames, actions, context, world_seeds(0, 6), batch_size=4, desc="test")
    assert torch.equal(predicted, frames[:, context:])


def test_rollouts_do_not_depend_on_frames_after_the_context(genie: Callable[..., GenieSimulator]) -> None:
    frames = torch.randint(0, 255, (3, 6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    actions, without_future = torch.tensor([[0, 1, 2, 3, 0]] * 3), frames.clone()
    without_future[:, 3:] = 0
    world = genie()
    expected, actual = (
        open_loop_rollout(world, f, actions, 3, world_seeds(0, 3), 3, "test") for f in (frames, without_future)
    )
    assert torch.equal(expected, actual)


def test_rollouts_do_not_depend_on_the_batch_size(genie: Callable[..., GenieSimulator]) -> None:
    frames = torch.randint(0, 255, (5, 6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    actions, world = torch.tensor([[0, 1, 2, 3, 0]] * 5), genie()
    together, in_batches_of_2 = (
        open_loop_rollout(world, frames, actions, 2, world_seeds(0, 5), size, "test") for size in (5, 2)
    )
    # Sums of another order may round differently, by one gray level.
    assert (together.int() - in_batches_of_2.int()).abs().max() <= 1


def test_repeating_the_last_frame_is_exact_on_still_clips() -> None:
    frames = torch.full((2, 5, 16, 16, 3), 7, dtype=torch.uint8)
    assert torch.isinf(set_psnr(frames[:, 2:], repeat_last_frame(frames, 2))).all()
    frames[:, :1] = 9  # frames before the last context frame do not matter
    assert torch.equal(repeat_last_frame(frames, 2), frames[:, 2:])


def test_random_actions_cover_the_space_and_depend_on_the_seed() -> None:
    space = ActionSpace("discrete", 5)
    actions = random_action_sequences(space, world_seeds(0, 200), 10)
    counts = torch.bincount(actions.flatten(), minlength=5)
    assert actions.shape == (200, 10)
    assert len(counts) == 5
    assert (counts - 400).abs().max() < 80
    assert torch.equal(actions[3:7], random_action_sequences(space, world_seeds(0, 200)[3:7], 10))
    vectors = random_action_sequences(ActionSpace("continuous", 2), world_seeds(0, 50), 4)
    assert vectors.shape == (50, 4, 2)
    assert -1 <= vectors.min() < -0.9
    assert 0.9 < vectors.max() <= 1


def make_eval_clips(actions: Tensor | None) -> EvalClips:
    frames = torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8)
    return EvalClips(frames, actions, (), "hash", 2, 1)


def test_labeled_worlds_use_the_recorded_actions(genie: Callable[..., GenieSimulator]) -> None:
    recorded = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert read_clip_actions(genie(labeled=True), make_eval_clips(recorded), 2).tolist() == [[0, 1, 2], [3, 2, 1]]


def test_latent_actions_are_inferred_from_the_whole_clip(genie: Callable[..., GenieSimulator]) -> None:
    assert read_clip_actions(genie(), make_eval_clips(None), 1).shape == (2, 3)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (None, "have none"),
        (torch.full((2, 4), 9), r"takes 4 discrete actions, and the data hold 0\.\.9"),
        (torch.zeros(2, 4, 3), "vectors of 3 numbers"),
    ],
)
def test_rejects_actions_that_do_not_fit(
    genie: Callable[..., GenieSimulator], actions: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_clip_actions(genie(labeled=True), make_eval_clips(actions), 2)
