"""Real games seen through a world: each copy as it would be alone, and on from where it stood."""

from pathlib import Path

import pytest
import torch
from button_game import LENGTH
from factories import diffusion_world, genie, tokenizer

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.algorithms.encoded_env import EncodedBatchedEnv, EncodedEnvSpec
from vwm.rl.algorithms.encoded_env import reconstruct_frames as through_tokenizer
from vwm.rl.evaluation import evaluate_policy
from vwm.worlds.bundle import save_simulator

GAME = GymnasiumEnvSpec("Buttons-v0", size=8)
COPIES = 3


def open_copies(observe: str = "features", seed: int = 5) -> EncodedBatchedEnv:
    return EncodedBatchedEnv(GAME.open(COPIES, seed), diffusion_world(), observe, seed)


def actions(count: int) -> torch.Tensor:
    return torch.randint(4, (count, COPIES), generator=torch.Generator().manual_seed(0))


def test_every_copy_is_seen_as_it_would_be_alone() -> None:
    """Against the simulator itself, a copy at a time: reset at each first frame, then one observation after another."""
    copies, plain, world = open_copies(), GAME.open(COPIES, 5), diffusion_world()
    seen, real = copies.reset(), plain.reset()
    assert copies.spaces.observation.shape == (32,) and copies.spaces.actions.size == 4
    states, episodes, done = [None] * COPIES, [-1] * COPIES, actions(1)[0]
    for action in actions(2 * LENGTH + 3):
        for copy in range(COPIES):
            frame = real.observation[copy][None]
            if real.is_first[copy]:
                episodes[copy] += 1
                seed = fold_in(world_seeds(5, COPIES)[copy], episodes[copy])[None]
                states[copy] = world.reset(frame[:, None], seed)[0]
            else:
                states[copy] = world.observe(states[copy], done[copy][None], frame)
            assert torch.allclose(seen.observation[copy], world.features(states[copy])[0], atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(seen[1:], real[1:], strict=True))
        done, seen, real = action, copies.step(action), plain.step(action)
    assert episodes == [2, 2, 2]


@pytest.mark.parametrize("observe", ["features", "latent", "frame"])
def test_a_state_goes_on_exactly(observe: str, tmp_path: Path) -> None:
    copies, other = open_copies(observe), open_copies(observe)
    assert copies.spaces.observation.is_image == (observe == "frame")
    copies.reset()
    for action in actions(LENGTH + 3):
        time_step = copies.step(action)
    torch.save(copies.state_dict(), tmp_path / "state.pt")
    again = other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for action in actions(LENGTH):
        assert all(torch.equal(a, b) for a, b in zip(time_step, again, strict=True))
        time_step, again = copies.step(action), other.step(action)


def test_other_seeds_are_seen_with_other_noise() -> None:
    one, other = (EncodedBatchedEnv(GAME.open(2, 0), diffusion_world(), "features", seed) for seed in (0, 1))
    assert not torch.equal(one.reset().observation, other.reset().observation)


def test_frames_are_the_tokenizers_own_with_its_memory() -> None:
    """A tokenizer that remembers draws a frame otherwise alone: what came before it must have been seen."""
    game = GymnasiumEnvSpec("Buttons-v0", size=16)
    copies, real = EncodedBatchedEnv(game.open(2, 0), genie(), "frame", 0), game.open(2, 0)
    frames, shown = [real.reset().observation], [copies.reset().observation]
    for action in torch.tensor([[0, 1], [2, 3], [1, 1]]):
        frames.append(real.step(action).observation)
        shown.append(copies.step(action).observation)
    network, video = tokenizer(), frames_to_float(torch.stack(frames, dim=1))
    with torch.no_grad():
        _, tokens = network.encode_step(network.init_encoder(2), video)
        _, redrawn = network.decode_step(network.init_decoder(2), tokens)
        _, tokens = network.encode_step(network.init_encoder(2), video[:, 3:])
        _, alone = network.decode_step(network.init_decoder(2), tokens)
    # Not bit for bit: rounding to whole numbers may tip over.
    at_once = through_tokenizer(genie(), torch.stack(frames, dim=1))
    assert (torch.stack(shown, dim=1).int() - at_once.int()).abs().max() <= 1
    assert (torch.stack(shown, dim=1).int() - video_to_uint8(redrawn).int()).abs().max() <= 1
    assert not torch.equal(shown[3], video_to_uint8(alone)[:, 0])


def test_it_is_an_environment_with_the_real_frames(tmp_path: Path) -> None:
    save_simulator(diffusion_world(), tmp_path / "world")
    copies = EncodedEnvSpec(GAME, tmp_path / "world").open(1, 3)
    copies.reset()
    assert (copies.render() == GAME.open(1, 3).reset().observation[0].numpy()).all()


def test_who_plays_at_random_needs_no_world() -> None:
    found, real = (evaluate_policy(None, game, 3, seed=1) for game in (EncodedEnvSpec(GAME, Path("nowhere")), GAME))
    assert found.returns.tolist() == real.returns.tolist() and found.lengths.tolist() == [LENGTH] * 3


@pytest.mark.parametrize(
    ("game", "observe", "message"),
    [
        (
            GymnasiumEnvSpec("Buttons-v0", size=16),
            "features",
            "the environment shows \\[16, 16, 3\\], the world takes \\[8, 8, 3\\]",
        ),
        (GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8), "features", "takes 2 discrete actions, the world 4"),
    ],
)
def test_rejects_environments_that_do_not_fit(game: GymnasiumEnvSpec, observe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodedBatchedEnv(game.open(1, 0), diffusion_world(), observe, 0)
