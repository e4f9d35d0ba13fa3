"""Image goals: distances, reductions over time, and encoding of goal images."""

import pytest
import torch
from count_world import CountWorld
from factories import diffusion_world, genie
from rooms_world import ExactRooms

from vwm.core.capabilities import EncodesFrames
from vwm.core.simulator import StepOutput
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames, latent_distance
from vwm.planning.sampling_planner import SequenceRollout


def test_distances_are_means_over_all_values_of_a_latent():
    latent, goal = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), torch.zeros(1, 2, 2)
    assert float(latent_distance(latent, goal, "l1")) == 3
    assert float(latent_distance(latent, goal, "l2")) == pytest.approx(12.5**0.5)
    with pytest.raises(ValueError, match=r"\[2, 2\].*\[3\]"):
        latent_distance(latent, torch.zeros(1, 3), "l1")


def test_each_world_is_compared_with_the_goal_of_its_problem():
    goals = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    output = StepOutput(None, torch.tensor([[1.0, 1], [1, 1], [9, 9]]), torch.zeros(3), torch.zeros(3).bool())
    assert GoalDistance(goals).step_cost(output, torch.tensor([0, 1, 1])).tolist() == [1, 9, 1]


def test_reductions_over_steps():
    costs = torch.tensor([[4.0, 1.0, 2.0]], dtype=torch.float64)
    rollout = SequenceRollout(costs, torch.zeros(1, 3).bool(), torch.zeros(1, 1))

    def total_cost(**settings) -> float:
        return float(GoalDistance(torch.zeros(1, 1), **settings).sequence_cost(rollout))

    assert total_cost(reduction="end") == 2 and total_cost(reduction="min") == 1
    assert total_cost(reduction="sum") == pytest.approx(7 / 3)
    assert total_cost(reduction="sum", decay=0.5) == pytest.approx((4 * 0.25 + 0.5 + 2) / 1.75)
    assert total_cost(reduction="sum", decay=0.0) == total_cost(reduction="end")
    for invalid in ({"metric": "l3"}, {"reduction": "all"}, {"decay": 1.1}):
        with pytest.raises(ValueError, match=str(next(iter(invalid.values())))):
            total_cost(**invalid)


def test_goals_are_encoded_by_a_world_with_an_encoder():
    world = ExactRooms()
    assert isinstance(world, EncodesFrames) and not isinstance(CountWorld(), EncodesFrames)
    state = world.at(torch.tensor([[15.25, 20.0], [50, 12.5]]), torch.full((2, 2), 32.0))
    _, output = world.step(state, torch.zeros(2, 2))
    assert (encode_goal_frames(world, output.frame) - output.latent).abs().max() < 0.05


def test_goals_are_encoded_by_the_tokenizer_of_continuous_latents():
    world = diffusion_world()
    frames = world.starts[:, -1]
    goal = encode_goal_frames(world, frames)
    state, _ = world.reset(frames[:, None])
    _, output = world.step(state, torch.zeros(3, dtype=torch.int64), decode=False)
    assert goal.shape == output.latent.shape
    assert torch.equal(goal, world.tokenizer.encode(frames[:, None].permute(0, 1, 4, 2, 3).float() / 127.5 - 1)[:, 0])


def test_rejects_discrete_latents_and_frames_of_another_size():
    with pytest.raises(ValueError, match="tokens of a codebook"):
        encode_goal_frames(genie(), genie().starts[:, -1])
    with pytest.raises(ValueError, match=r"64, 64, 3\]"):
        encode_goal_frames(ExactRooms(), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
