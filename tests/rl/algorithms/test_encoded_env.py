"""Real environments observed through a world: batched equals single, and a loaded state continues exactly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from button_game import LENGTH
from factories import diffusion_world, genie, latent_frames_world, tokenizer

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.held_actions import HeldActionEnv
from vwm.rl.algorithms.encoded_env import EncodedBatchedEnv, EncodedEnvSpec, reconstruct_frames
from vwm.rl.evaluation import evaluate_policy
from vwm.worlds.bundle import save_simulator

ENV = GymnasiumEnvSpec("Buttons-v0", size=8)
NUM_ENVS = 3


def open_envs(observe: str = "features", seed: int = 5) -> EncodedBatchedEnv:
    return EncodedBatchedEnv(ENV.open(NUM_ENVS, seed), diffusion_world(), observe, seed)


def make_actions(count: int) -> torch.Tensor:
    return torch.randint(4, (count, NUM_ENVS), generator=torch.Generator().manual_seed(0))


def test_observations_equal_those_of_one_simulator_per_environment() -> None:
    """The reference resets one simulator per environment at each first frame and then observes frame by frame."""
    envs, real_envs, world = open_envs(), ENV.open(NUM_ENVS, 5), diffusion_world()
    time_step, real_time_step = envs.reset(), real_envs.reset()
    assert envs.spaces.observation.shape == (32,) and envs.spaces.actions.size == 4
    states, episodes, last_action = [None] * NUM_ENVS, [-1] * NUM_ENVS, make_actions(1)[0]
    for action in make_actions(2 * LENGTH + 3):
        for i in range(NUM_ENVS):
            frame = real_time_step.observation[i][None]
            if real_time_step.is_first[i]:
                episodes[i] += 1
                seed = fold_in(world_seeds(5, NUM_ENVS)[i], episodes[i])[None]
                states[i] = world.reset(frame[:, None], seed)[0]
            else:
                states[i] = world.observe(states[i], last_action[i][None], frame)
            assert torch.allclose(time_step.observation[i], world.features(states[i])[0], atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(time_step[1:], real_time_step[1:], strict=True))
        last_action, time_step, real_time_step = action, envs.step(action), real_envs.step(action)
    assert episodes == [2, 2, 2]


def open_held(observe: str = "features", frames: int = 4) -> EncodedBatchedEnv:
    return EncodedBatchedEnv(HeldActionEnv(ENV, frames, NUM_ENVS, 5), latent_frames_world(frames), observe, 5)


def test_a_world_of_four_frames_per_step_holds_the_action_and_observes_every_frame() -> None:
    """The reference plays one environment after the other; its episodes of six decisions end within a step."""
    world = latent_frames_world(4)
    for observe in ("features", "frame"):
        envs, held = open_held(observe), HeldActionEnv(ENV, 4, NUM_ENVS, 5)
        time_steps, shown = [envs.reset()], [held.reset()]
        for action in make_actions(4):
            time_steps.append(envs.step(action))
            shown.append(held.step(action))
        for i in range(NUM_ENVS):
            real = ENV.open(1, int(np.random.SeedSequence([5, i]).generate_state(1)[0]))
            first = real.reset().observation
            assert (shown[0].observation[i] == first).all() and shown[0].observation.shape[1] == 4
            frames, rewards, taken = [first], [], [int(action[i]) for action in make_actions(4)]
            for number, held_for in ((0, 4), (1, 2)):
                steps = [real.step(torch.tensor([taken[number]])) for _ in range(held_for)]
                frames += [step.observation for step in steps] + [steps[-1].observation] * (4 - held_for)
                rewards.append(sum(float(step.reward) for step in steps))
            assert [float(step.reward[i]) for step in time_steps[1:3]] == rewards
            assert [bool(step.is_last[i]) for step in time_steps] == [False, False, True, False, False]
            assert [bool(step.is_first[i]) for step in time_steps] == [True, False, False, True, False]
            video, seed = torch.stack(frames, dim=1), fold_in(world_seeds(5, NUM_ENVS)[i], torch.tensor(0))[None]
            assert torch.equal(torch.cat([step.observation[i] for step in shown[1:3]]), video[0, 1:])
            if observe == "frame":
                expected = reconstruct_frames(world, video)[0, ::4]
                found = torch.stack([step.observation[i] for step in time_steps[:3]])
                assert (found.int() - expected.int()).abs().max() <= 1
                continue
            state = world.reset(video[:, :1], seed)[0]
            for number in range(2):
                between = slice(1 + 4 * number, 5 + 4 * number)
                state = world.observe(state, torch.tensor([taken[number]]), video[:, between])
                expected = world.features(state)[0]
                assert torch.allclose(time_steps[number + 1].observation[i], expected, atol=1e-5)
            beginning = real.step(torch.tensor([0])).observation  # of the next episode
            state = world.reset(beginning[:, None], fold_in(world_seeds(5, NUM_ENVS)[i], torch.tensor(1))[None])[0]
            assert torch.allclose(time_steps[3].observation[i], world.features(state)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("observe", "open_envs"),
    [("features", open_envs), ("latent", open_envs), ("frame", open_envs), ("features", open_held)],
)
def test_a_loaded_state_continues_exactly(observe: str, open_envs: Callable, tmp_path: Path) -> None:
    envs, restored_envs = open_envs(observe), open_envs(observe)
    assert envs.spaces.observation.is_image == (observe == "frame")
    envs.reset()
    for action in make_actions(LENGTH + 3):
        time_step = envs.step(action)
    torch.save(envs.state_dict(), tmp_path / "state.pt")
    restored = restored_envs.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for action in make_actions(LENGTH):
        assert all(torch.equal(a, b) for a, b in zip(time_step, restored, strict=True))
        time_step, restored = envs.step(action), restored_envs.step(action)


def test_observation_noise_depends_on_the_seed() -> None:
    one, other = (EncodedBatchedEnv(ENV.open(2, 0), diffusion_world(), "features", seed) for seed in (0, 1))
    assert not torch.equal(one.reset().observation, other.reset().observation)


def test_frames_are_reconstructed_with_the_tokenizers_memory() -> None:
    """A causal tokenizer reconstructs a frame differently without the frames before it."""
    env = GymnasiumEnvSpec("Buttons-v0", size=16)
    envs, real_envs = EncodedBatchedEnv(env.open(2, 0), genie(), "frame", 0), env.open(2, 0)
    frames, reconstructed = [real_envs.reset().observation], [envs.reset().observation]
    for action in torch.tensor([[0, 1], [2, 3], [1, 1]]):
        frames.append(real_envs.step(action).observation)
        reconstructed.append(envs.step(action).observation)
    network, video = tokenizer(), frames_to_float(torch.stack(frames, dim=1))
    with torch.no_grad():
        _, tokens = network.encode_step(network.init_encoder(2), video)
        _, decoded = network.decode_step(network.init_decoder(2), tokens)
        _, tokens = network.encode_step(network.init_encoder(2), video[:, 3:])
        _, alone = network.decode_step(network.init_decoder(2), tokens)
    # Not bit for bit: a value near a half may round either way.
    parallel = reconstruct_frames(genie(), torch.stack(frames, dim=1))
    assert (torch.stack(reconstructed, dim=1).int() - parallel.int()).abs().max() <= 1
    assert (torch.stack(reconstructed, dim=1).int() - video_to_uint8(decoded).int()).abs().max() <= 1
    assert not torch.equal(reconstructed[3], video_to_uint8(alone)[:, 0])


def test_render_shows_the_real_frames(tmp_path: Path) -> None:
    save_simulator(diffusion_world(), tmp_path / "world")
    envs = EncodedEnvSpec(ENV, tmp_path / "world").open(1, 3)
    envs.reset()
    assert (envs.render() == ENV.open(1, 3).reset().observation[0].numpy()).all()


def test_the_random_policy_needs_no_world() -> None:
    encoded, real = (evaluate_policy(None, env, 3, seed=1) for env in (EncodedEnvSpec(ENV, Path("nowhere")), ENV))
    assert encoded.returns.tolist() == real.returns.tolist() and encoded.lengths.tolist() == [LENGTH] * 3


@pytest.mark.parametrize(
    ("env", "observe", "message"),
    [
        (
            GymnasiumEnvSpec("Buttons-v0", size=16),
            "features",
            "the environment shows \\[16, 16, 3\\], the world takes \\[8, 8, 3\\]",
        ),
        (GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8), "features", "takes 2 discrete actions, the world 4"),
    ],
)
def test_rejects_environments_that_do_not_fit(env: GymnasiumEnvSpec, observe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodedBatchedEnv(env.open(1, 0), diffusion_world(), observe, 0)
