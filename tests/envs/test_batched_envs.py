"""Environments: which reward belongs to which moment, where episodes begin and end, and going on exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.algorithms.encoded_env import EncodedEnvSpec


def test_moments_of_cartpole_are_the_games_own() -> None:
    import gymnasium

    worlds = GymnasiumEnvSpec("CartPole-v1").open(1, seed=5)
    moment = worlds.reset()
    assert moment.is_first.item() and moment.reward.item() == 0 and worlds.spaces.observation.shape == (4,)
    game = gymnasium.make("CartPole-v1")
    seed = np.random.SeedSequence([5, 0, 0]).generate_state(1)[0]
    shown, _ = game.reset(seed=int(seed) % 2**31)
    terminated = False
    while not terminated:
        assert np.array_equal(moment.observation[0].numpy(), shown)
        assert not moment.is_last.item()
        shown, reward, terminated, _, _ = game.step(1)
        moment = worlds.step(torch.tensor([1]))
        assert moment.reward.item() == reward
    assert np.array_equal(moment.observation[0].numpy(), shown)
    assert moment.is_last.item() and moment.is_terminal.item()
    moment = worlds.step(torch.tensor([0]))
    assert moment.is_first.item() and not moment.is_last.item() and moment.reward.item() == 0


def test_games_are_called_by_what_is_set() -> None:
    game = GymnasiumEnvSpec("CartPole-v1", time_limit=5)
    assert str(game) == "GymnasiumEnvSpec(env=CartPole-v1, time_limit=5)"
    through = EncodedEnvSpec(game, Path("world"), observe="latent")
    assert str(through) == f"EncodedEnvSpec(env={game}, bundle=world, observe=latent)"


def test_a_limit_of_time_ends_an_episode_but_not_the_world() -> None:
    worlds = GymnasiumEnvSpec("Pendulum-v1", action_repeat=2, time_limit=3).open(2, seed=0)
    worlds.reset()
    moments = [worlds.step(torch.zeros(2, 1)) for _ in range(4)]
    assert [m.is_last.tolist() for m in moments] == [[False, False], [False, False], [True, True], [False, False]]
    assert not any(m.is_terminal.any() for m in moments)
    assert moments[3].is_first.all()
    assert not torch.equal(moments[0].observation[0], moments[0].observation[1])  # each copy has its own luck


def test_repeated_actions_add_up_their_rewards() -> None:
    once, twice = (GymnasiumEnvSpec("Pendulum-v1", action_repeat=n).open(1, seed=1) for n in (1, 2))
    assert torch.equal(once.reset().observation, twice.reset().observation)
    action = torch.tensor([[0.5]])
    first, second = once.step(action), once.step(action)
    both = twice.step(action)
    assert torch.equal(both.observation, second.observation)
    assert both.reward.item() == pytest.approx(first.reward.item() + second.reward.item(), rel=1e-6)


@pytest.mark.parametrize(
    "game", [GymnasiumEnvSpec("CartPole-v1"), GymnasiumEnvSpec("CartPole-v1", pixels=True, size=16)]
)
def test_a_state_goes_on_exactly(game: GymnasiumEnvSpec) -> None:
    worlds, other = game.open(2, seed=0), game.open(2, seed=0)
    worlds.reset()
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(2, (60, 2), generator=generator)
    for action in actions[:40]:
        moment = worlds.step(action)
    again = other.load_state_dict(worlds.state_dict())
    for action in actions[40:]:
        assert all(torch.equal(a, b) for a, b in zip(moment, again, strict=True))
        moment, again = worlds.step(action), other.step(action)
    worlds.close()
    other.close()


def test_pictures_are_drawn_and_resized() -> None:
    worlds = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=32).open(1, seed=0)
    moment = worlds.reset()
    assert moment.observation.dtype == torch.uint8 and tuple(moment.observation.shape) == (1, 32, 32, 3)
    assert moment.observation.float().std() > 1
    picture = worlds.render()
    assert picture is not None and picture.shape[-1] == 3 and picture.shape[0] > 32
    worlds.close()


def test_continuous_actions_span_the_games_own() -> None:
    worlds = GymnasiumEnvSpec("Pendulum-v1").open(1, seed=0)
    assert worlds.spaces.actions.kind == "continuous" and worlds.spaces.actions.shape == (1,)
    copy = worlds.copies[0]
    assert copy.env.actions.denormalize(np.array([1.0], np.float32)).item() == 2.0


def test_games_that_agents_do_not_play_are_named() -> None:
    with pytest.raises(ValueError, match="NoSuchGame"):
        GymnasiumEnvSpec("NoSuchGame-v0").open(1, 0)
    with pytest.raises(ValueError, match="action_repeat must be 1 or more, got 0"):
        GymnasiumEnvSpec("CartPole-v1", action_repeat=0)
    with pytest.raises(ValueError, match="1 environment or more, got 0"):
        GymnasiumEnvSpec("CartPole-v1").open(0, 0)
