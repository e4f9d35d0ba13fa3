"""MinAtar as a Gymnasium environment of images: each object has its color, and equal seeds give equal episodes."""

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.env_ids import make_env
from vwm.envs.minatar import ACTION_NAMES, GAMES

pytest.importorskip("minatar", reason="MinAtar is not installed")

MINATAR = "vwm/MinAtar-v0"


def test_every_object_has_its_color_and_the_last_channel_shows() -> None:
    env = make_env(MINATAR, {"game": "breakout", "scale": 3})
    frame, _ = env.reset(seed=0)
    assert frame.shape == (30, 30, 3) and env.unwrapped.get_action_meanings() == ["noop", "left", "right"]
    cells = frame[::3, ::3]
    assert (frame.reshape(10, 3, 10, 3, 3) == cells[:, None, :, None]).all()
    state = env.unwrapped._game.state()
    assert len({tuple(color) for color in cells.reshape(-1, 3)}) == 3  # ground, paddle, and bricks over the ball
    assert (cells[1:4] == cells[1, 0]).all() and (cells[9, 4] != cells[1, 0]).any()
    moved = [env.step(0)[0] for _ in range(3)][-1]
    assert len({tuple(color) for color in moved.reshape(-1, 3)}) == 5  # the ball and its trail as well
    assert not cells[~state.any(2)].any() and cells[state.any(2)].any(1).all()


def test_equal_seeds_and_actions_give_equal_episodes_after_any_other_episode() -> None:
    def episode(env: object, seed: int) -> list:
        rng, steps, done = np.random.default_rng(seed), [env.reset(seed=seed)[0].tobytes()], False
        while not done and len(steps) < 200:
            frame, reward, done, _, _ = env.step(int(rng.integers(env.action_space.n)))
            steps.append((frame.tobytes(), reward))
        return steps

    for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
        used, fresh = make_env(MINATAR, {"game": game}), make_env(MINATAR, {"game": game})
        other = episode(used, 1)
        assert episode(used, 4) == episode(fresh, 4) != other


def test_games_can_share_their_actions() -> None:
    """An action that does not matter to a game is as no action."""
    names = [make_env(MINATAR, {"game": g, "full_action_space": True}).unwrapped.get_action_meanings() for g in GAMES]
    assert names == [list(ACTION_NAMES)] * len(GAMES)
    frames = []
    none_left_none_right = {False: [0, 1, 0, 2], True: [5, 1, 2, 3]}
    for full, actions in none_left_none_right.items():
        env = make_env(MINATAR, {"game": "breakout", "sticky_actions": 0.0, "full_action_space": full})
        env.reset(seed=0)
        frames.append([env.step(action)[0].tobytes() for action in actions])
    assert frames[0] == frames[1] and len(set(frames[0])) == 4


def test_it_opens_as_a_batched_environment_and_names_its_games() -> None:
    envs = GymnasiumEnvSpec(MINATAR, size=10, time_limit=3, options={"game": "space_invaders", "scale": 1}).open(2, 0)
    time_step = envs.reset()
    assert time_step.observation.shape == (2, 10, 10, 3) and envs.spaces.actions.names[3] == "fire"
    time_steps = [envs.step(torch.tensor([3, 0])) for _ in range(3)]
    assert [m.is_last.all().item() for m in time_steps] == [False, False, True] and not time_steps[-1].is_terminal.any()
    envs.close()
    with pytest.raises(ValueError, match=r"game must be one of asterix, breakout, .* got 'pong' and 2"):
        make_env(MINATAR, {"game": "pong"})
