"""Rewards read from the next frame: the same in clips and in play, and without it after the end of an episode."""

import pytest
import torch
from factories import randomize

from vwm.nn.outcome_heads import RewardTerminationHeads, sample_outcomes

WIDTH, BATCH, TIME = 6, 3, 5


def make_heads(sees_next: bool = True) -> RewardTerminationHeads:
    torch.manual_seed(0)
    return randomize(RewardTerminationHeads(WIDTH, 8, bins=21, sees_next=sees_next)).double()


def make_steps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(BATCH, TIME, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))


def test_the_loss_of_a_clip_is_that_of_its_steps_with_the_frames_that_follow() -> None:
    heads, (features, actions) = make_heads(), make_steps()
    reward = torch.linspace(-2, 2, BATCH * TIME, dtype=torch.float64).view(BATCH, TIME)
    ends = torch.zeros(BATCH, TIME, dtype=torch.bool)
    ends[1, 2] = True
    whole, _ = heads.losses(features, actions, reward, ends)
    single = []
    for i in range(BATCH):
        for t in range(TIME):
            follows = t + 1 < TIME and not ends[i, t]
            after = features[i, t + 1] if follows else heads.no_next
            hidden = heads.reward_body(torch.cat((features[i, t], actions[i, t], after)))
            single.append(heads.two_hot.loss(heads.reward(hidden)[None, None], reward[i, t][None, None]))
    assert torch.allclose(whole, torch.stack(single).mean(), atol=1e-12)


@pytest.mark.parametrize("sees_next", [False, True])
def test_only_heads_that_see_the_next_frame_depend_on_it(sees_next: bool) -> None:
    heads, (features, actions) = make_heads(sees_next), make_steps()
    first, second = (heads(features, actions, after) for after in (features, features + 1))
    assert torch.equal(first.reward, second.reward) != sees_next
    assert torch.equal(first.terminated, second.terminated)


def test_in_play_the_reward_of_a_termination_is_that_without_a_next_frame() -> None:
    heads = make_heads().float()
    now, action = (x[:, 0].float() for x in make_steps())
    seed, position = torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    expected = heads(now[:, None], action[:, None])
    for bias, ended in ((-50.0, False), (50.0, True)):
        heads.end.bias.data.fill_(bias)
        reward, terminated = sample_outcomes(heads, now, action, seed, position, now + 1)
        seen = heads(now[:, None], action[:, None], now[:, None] + 1)
        assert terminated.tolist() == [ended] * BATCH
        assert torch.equal(reward, (expected if ended else seen).reward[:, 0])
