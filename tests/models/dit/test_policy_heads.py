"""Policy and reward heads against an independent reference; masked entries do not count."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from factories import dit, randomize

from vwm.models.dit.policy_heads import PolicyRewardHeads, check_policy_matches_dit, multi_token_targets

B, T, L, WIDTH = 3, 6, 4, 8
KINDS = {"discrete": {"num_actions": 5}, "continuous": {"action_dims": 2, "action_bins": 5}}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(KINDS))
def heads(request) -> PolicyRewardHeads:
    torch.manual_seed(0)
    return randomize(PolicyRewardHeads(WIDTH, hidden=8, length=L, bins=11, **KINDS[request.param])).double()


def actions(heads: PolicyRewardHeads, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if heads.continuous:
        return torch.rand(B, T, 2, generator=generator) * 2 - 1
    return torch.randint(5, (B, T), generator=generator)


def reference_losses(heads, features, taken, rewards, labeled) -> tuple[float, float, float]:
    """The losses by loops over clips, frames, steps ahead and action components."""
    logits_ahead, rewards_ahead = (x.detach() for x in heads(features))
    policy, future, now = [], [], []
    for b in range(B):
        for t in range(T):
            for n in range(L):
                if t + n >= T:
                    continue
                future.append(float(heads.two_hot.loss(rewards_ahead[b, t, n], rewards[b, t + n])))
                if not labeled[b]:
                    continue
                action = taken[b, t + n]
                if heads.continuous:
                    grid = [-1.0, -0.5, 0.0, 0.5, 1.0]
                    chosen = [min(range(5), key=lambda k, x=float(x): abs(grid[k] - x)) for x in action]
                else:
                    chosen = [int(action)]
                logits = logits_ahead[b, t, n].tolist()
                wrong = sum(
                    math.log(sum(math.exp(x) for x in part)) - part[k] for part, k in zip(logits, chosen, strict=True)
                )
                policy.append(wrong)
                if n == 0:
                    now.append(wrong)
    return tuple(sum(x) / len(x) for x in (policy, future, now))


def test_losses_are_means_over_targets_within_the_clips(heads):
    features, rewards, labeled = random(B, T, WIDTH), random(B, T, seed=2), torch.tensor([True, False, True])
    found = [x.detach() for x in heads.losses(features, actions(heads), rewards, labeled)]
    expected = reference_losses(heads, features, actions(heads), rewards, labeled.tolist())
    for mine, reference in zip(torch.stack(found).tolist(), expected, strict=True):
        assert mine == pytest.approx(reference, rel=1e-6)  # cross-entropies are taken in float32


def test_actions_of_unlabeled_clips_have_no_effect(heads):
    """Rewards of unlabeled clips are learned."""
    features, rewards = random(B, T, WIDTH).requires_grad_(True), random(B, T, seed=2)
    labeled = torch.tensor([True, False, True])
    losses = heads.losses(features, actions(heads), rewards, labeled)
    other = actions(heads).clone()
    other[1] = actions(heads, seed=5)[1]
    assert torch.equal(heads.losses(features, other, rewards, labeled).policy, losses.policy)
    (of_policy,) = torch.autograd.grad(losses.policy, features, retain_graph=True)
    assert not of_policy[1].any() and of_policy[[0, 2]].any()
    (of_rewards,) = torch.autograd.grad(losses.rewards, features)
    assert of_rewards[1].any()


def test_predictions_beyond_the_end_of_a_clip_do_not_count(heads):
    features, rewards = random(B, T, WIDTH), random(B, T, seed=2)
    for frames in range(1, T + 1):

        def loss(shift: float, distances: slice, frames: int = frames) -> torch.Tensor:
            """Loss of clips of `frames` frames, with changed predictions at some distances."""
            moved = copy.deepcopy(heads).requires_grad_(False)
            for head in (moved.action, moved.reward):
                bias = head.bias.view(L, -1)[distances]
                bias.add_(shift * random(*bias.shape))
            losses = moved.losses(features[:, :frames], actions(heads)[:, :frames], rewards[:, :frames])
            return losses.policy + losses.rewards

        assert torch.equal(loss(3.0, slice(frames, None)), loss(0.0, slice(frames, None)))
        assert not torch.equal(loss(3.0, slice(frames - 1, frames)), loss(0.0, slice(None))) or frames > L


def test_steps_after_the_end_of_an_episode_do_not_count(heads):
    features, taken, rewards = random(B, T // 2, WIDTH), actions(heads), random(B, T, seed=2)
    rewards[:, -1] = torch.nan
    changed = taken.clone()
    changed[:, -1] = -1 if heads.continuous else 0
    losses = heads.losses(features, taken, rewards)
    assert losses == heads.losses(features, changed, rewards) and all(x.isfinite() for x in losses)
    assert losses != heads.losses(features, taken, rewards.nan_to_num())


def test_multi_token_targets_are_the_values_of_later_steps():
    every_second, all_inside = multi_token_targets(torch.arange(2 * T).view(2, T), 3, every=2)
    assert every_second[0].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 5]]
    assert all_inside.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    found, inside = multi_token_targets(torch.arange(2 * T).view(2, T), L)
    for t in range(T):
        for n in range(L):
            assert bool(inside[t, n]) == (t + n < T)
            if t + n < T:
                assert found[:, t, n].tolist() == [t + n, T + t + n]


def test_the_policy_is_the_first_predicted_action(heads):
    features = random(B, T, WIDTH)
    logits = heads.policy(features)
    shape = (B, T, 2, 5) if heads.continuous else (B, T, 5)
    assert logits.shape == shape and torch.equal(logits.view(B, T, -1), heads(features)[0][:, :, 0].flatten(2))
    assert torch.equal(heads.policy(features[0, 0]), logits[0, 0])


def test_discretized_actions_round_trip(heads):
    choices = torch.randint(5, (7, heads.num_components), generator=torch.Generator().manual_seed(0))
    taken = heads.decode_action(choices)
    assert torch.equal(heads.encode_action(taken), choices)
    if heads.continuous:
        assert taken.min() >= -1 and taken.max() <= 1
        near = heads.decode_action(heads.encode_action(actions(heads)))
        assert (near - actions(heads)).abs().max() <= 0.25 + 1e-6


def test_learns_actions_and_rewards_at_every_distance():
    """The features give the phase of a cycle of actions, from which every later action follows."""
    torch.manual_seed(0)
    heads = PolicyRewardHeads(WIDTH, num_actions=3, hidden=32, length=L, bins=21)
    phase = (torch.arange(B)[:, None] + torch.arange(T)) % 3
    features, rewards = torch.nn.functional.one_hot(phase, WIDTH).float(), (phase == 2).float()
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    for _ in range(150):
        losses = heads.losses(features, phase, rewards)
        optimizer.zero_grad()
        (losses.policy + losses.rewards).backward()
        optimizer.step()
    logits_ahead, rewards_ahead = heads(features)
    expected, inside = multi_token_targets(phase, L)
    assert torch.equal(logits_ahead.argmax(-1)[..., 0][inside.expand(B, T, L)], expected[inside.expand(B, T, L)])
    predicted_rewards = heads.two_hot.mean(rewards_ahead)[inside.expand(B, T, L)]
    torch.testing.assert_close(predicted_rewards, (expected == 2).float()[inside.expand(B, T, L)], rtol=0, atol=0.1)


def test_rejects_invalid_heads():
    for settings, message in (
        ({}, "num_actions=0 or action_dims=0 must be given"),
        ({"num_actions": 2, "action_dims": 2}, "not both"),
        ({"num_actions": 2, "length": 0}, "length=0 of 1 or more"),
        ({"action_dims": 2, "action_bins": 1}, "action_bins=1 of 2 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            PolicyRewardHeads(WIDTH, **settings)
    for settings, network, message in (
        ({"width": 16, "num_actions": 4}, {}, "policy.width=16 but dynamics.width=32"),
        ({"width": 32, "num_actions": 3}, {}, "policy.num_actions=3 but dynamics.num_actions=4"),
        (
            {"width": 32, "num_actions": 4},
            {"num_actions": 0, "action_parts": [{"kind": "keys", "size": 4}]},
            "dynamics.num_actions=0: .*composite actions",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_policy_matches_dit(PolicyRewardHeads(**settings), dit(**network))
