"""Learning in imagination: it learns, writes its metrics, and a resumed run equals an uninterrupted one."""

import functools
import json
import signal
from pathlib import Path

import pytest
import torch
from button_game import LENGTH, learned_world, record
from factories import diffusion_world, genie, latent_frames_world
from recording_backend import RecordingBackend

from vwm.cli.main import main
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms import imagination
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.actor_critic_policy import (
    ClonedActorCriticPolicy,
    FeatureActorCriticPolicy,
    FrameActorCriticPolicy,
)
from vwm.rl.algorithms.encoded_env import reconstruct_frames
from vwm.rl.algorithms.imagination import (
    ImaginationEnsemble,
    ImaginationLearning,
    ImaginationOptimizerConfig,
    ImaginationRolloutConfig,
)
from vwm.rl.algorithms.imagined_rollout import (
    ImaginedRollout,
    imagine_rollout,
    mean_reward_per_step,
    simulator_env_spaces,
)
from vwm.rl.algorithms.policy_objectives import PMPOObjective, ReinforceObjective
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, EvaluationConfig
from vwm.worlds.bundle import save_simulator
from vwm.worlds.context_sampler import ContextSampler, SimulatorContext
from vwm.worlds.ensemble import EnsembleSimulator

BATCH, HORIZON = 32, 2
UPDATE = BATCH * HORIZON
POLICIES = {
    "features": functools.partial(FeatureActorCriticPolicy, actor=ActorConfig(width=16, layers=1)),
    "frame": functools.partial(FrameActorCriticPolicy, conv_channels=4, channel_multipliers=(1, 2), width=8),
    "cloned": functools.partial(ClonedActorCriticPolicy, critic=CriticConfig(width=16, layers=1), deterministic=False),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A recording, and a world with random heads in place of a cloned policy."""
    folder = tmp_path_factory.mktemp("imagination")
    world = learned_world()
    torch.manual_seed(2)
    world.policy = PolicyRewardHeads(32, 4, hidden=16, length=2, bins=11).eval().requires_grad_(False)
    save_simulator(world, folder / "world")
    record(folder / "data")
    return folder


def make_training(
    workspace: Path, run: Path, policy: str = "features", objective=None, steps: int = 4 * UPDATE,
    every: int = 2 * UPDATE,
    discount: float = 0.997, ensemble: dict | None = None, **optimizer,
) -> AgentTraining:  # fmt: skip
    learning = ImaginationLearning(
        workspace / "world",
        str(workspace / "data"),
        POLICIES[policy],
        objective or ReinforceObjective(),
        observe="frame" if policy == "frame" else "features",
        rollouts=ImaginationRolloutConfig(batch_size=BATCH, horizon=HORIZON, rewarded_fraction=0.5, discount=discount),
        ensemble=ImaginationEnsemble(**ensemble or {}),
        optimizer=ImaginationOptimizerConfig(**{"lr": 1e-2, **optimizer}),
    )
    evaluation = EvaluationConfig(every, episodes=2, env=GymnasiumEnvSpec("Buttons-v0", size=8), video=False)
    return AgentTraining(run, learning, steps, evaluation=evaluation, checkpoint_every=UPDATE, log_every=2)


def read_column(path: Path, name: str) -> list[float]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [float(row[rows[0].index(name)]) for row in rows[1:]]


@pytest.mark.parametrize(
    ("policy", "objective"), [("cloned", PMPOObjective(beta=0.1)), ("features", ReinforceObjective())]
)
def test_policies_learned_in_imagination_work_in_the_real_environment(
    workspace, tmp_path, policy: str, objective
) -> None:
    """One of four buttons has a reward, in episodes of six steps; training never uses the real environment."""
    run = make_training(workspace, tmp_path, policy, objective, steps=24 * UPDATE, lr=3e-2, every=10**6)
    run.run()
    before, after = read_column(tmp_path / "metrics" / "evaluations.csv", "mean")
    imagined = read_column(tmp_path / "metrics" / "episodes.csv", "return")
    assert read_column(tmp_path / "metrics" / "evaluations.csv", "step") == [0, 24 * UPDATE]
    assert before < 0.6 * LENGTH < 0.9 * LENGTH < imagined[-1]
    best = evaluate_policy(run.load_policy(best=True), run.eval_env, run.evaluation.episodes, EVALUATION_SEED_OFFSET)
    assert best.returns.mean() == max(before, after)
    evaluation = evaluate_policy(run.load_policy(), run.eval_env, 8, seed=9)
    assert after > 0.75 * LENGTH and evaluation.returns.mean() > 0.75 * LENGTH
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("policy", ["features", "frame", "cloned"])
def test_an_interrupted_run_equals_an_uninterrupted_one(workspace, tmp_path, policy: str) -> None:
    objective = PMPOObjective() if policy == "cloned" else PMPOObjective(beta=0)
    settings = {"epochs": 2, "critic_warmup_steps": UPDATE}
    make_training(workspace, tmp_path / "uninterrupted", policy, objective, **settings).run()
    make_training(workspace, tmp_path / "interrupted", policy, objective, **settings, steps=2 * UPDATE).run()
    # What a run writes after its last checkpoint, before it is killed, must leave no trace.
    with (tmp_path / "interrupted" / "metrics" / "evaluations.csv").open("a") as file:
        file.write(f"{3 * UPDATE},9,9,9,9,9,9\r\n")
    make_training(workspace, tmp_path / "interrupted", policy, objective, **settings).run()
    uninterrupted, interrupted = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("uninterrupted", "interrupted")
    )
    one, other = uninterrupted["algorithm"]["policy"], interrupted["algorithm"]["policy"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(uninterrupted["generators"]["torch"], interrupted["generators"]["torch"])
    for name in ("evaluations", "episodes"):
        one, other = (
            (tmp_path / run / "metrics" / f"{name}.csv").read_text() for run in ("uninterrupted", "interrupted")
        )
        assert one == other
    assert read_column(tmp_path / "interrupted" / "metrics" / "evaluations.csv", "step") == [0, 2 * UPDATE, 4 * UPDATE]


@pytest.mark.usefixtures("no_curves")
def test_a_stop_request_saves_a_checkpoint(workspace, tmp_path, monkeypatch, capsys) -> None:
    training, step = make_training(workspace, tmp_path, "features", PMPOObjective(beta=0)), ImaginationLearning.step

    def interrupted(self):
        metrics = step(self)
        signal.raise_signal(signal.SIGINT)
        return metrics

    monkeypatch.setattr(ImaginationLearning, "step", interrupted)
    with pytest.raises(SystemExit):
        training.run()
    assert f"stopped: {UPDATE} decisions are saved" in capsys.readouterr().out
    resumed = make_training(workspace, tmp_path, "features", PMPOObjective(beta=0))
    resumed.set_up()
    assert resumed.algorithm.progress == UPDATE


CONFIG = """
run: {run}
steps: 16
log_every: 1
evaluation:
  episodes: 2
  env:
    class_path: vwm.envs.batched_envs.GymnasiumEnvSpec
    init_args: {{env: Buttons-v0, size: 8}}
algorithm:
  class_path: vwm.rl.algorithms.imagination.ImaginationLearning
  init_args:
    bundle: {home}/world
    data: {home}/data
    policy:
      class_path: vwm.rl.algorithms.actor_critic_policy.ClonedActorCriticPolicy
      init_args:
        critic: {{width: 8, layers: 1}}
    objective:
      class_path: vwm.rl.algorithms.policy_objectives.PMPOObjective
      init_args: {{beta: 0.2}}
    rollouts: {{batch_size: 4, horizon: 2}}
"""


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("policy", ["frame", "cloned"])
def test_a_world_of_two_frames_per_step_trains_policies_that_hold_actions_in_the_real_environment(
    workspace, tmp_path, policy: str
) -> None:
    (tmp_path / "data").symlink_to(workspace / "data")
    world = latent_frames_world(2, outcomes=True, agent_tokens=1)
    world.policy = PolicyRewardHeads(32, 4, hidden=16, length=2, bins=11).eval().requires_grad_(False)
    save_simulator(world, tmp_path / "world")
    run = make_training(tmp_path, tmp_path / "run", policy, steps=UPDATE, every=UPDATE)
    run.run()
    assert read_column(tmp_path / "run" / "metrics" / "evaluations.csv", "step") == [0, UPDATE]
    evaluation = evaluate_policy(run.load_policy(), run.eval_env, 3, seed=9)
    assert evaluation.lengths.tolist() == [LENGTH / 2] * 3  # decisions of two frames


@pytest.mark.usefixtures("no_curves")
def test_agent_train_eval_and_play_commands(workspace, tmp_path, capsys) -> None:
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=run, home=workspace))
    main(["agent", "train", "-c", str(config)])
    assert read_column(run / "metrics" / "evaluations.csv", "step") == [0, 16]
    imagined, gap, mean = (
        read_column(run / "metrics" / "evaluations.csv", name)[-1] for name in ("imagined", "gap", "mean")
    )
    returns = read_column(run / "metrics" / "episodes.csv", "return")
    assert imagined == pytest.approx(sum(returns) / 2) and gap == pytest.approx(imagined - mean)
    assert {path.name for path in (run / "videos").iterdir()} == {"000000000.mp4", "000000016.mp4"}
    main(["agent", "eval", str(run), "--episodes", "3"])
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["agent"]["returns"]) == 3 and evaluation["agent"]["length"] == LENGTH
    assert "EncodedEnvSpec" in evaluation["env"]
    main(["agent", "play", str(run), "--out", str(tmp_path / "play")])
    assert (tmp_path / "play" / "000.mp4").is_file()


@pytest.mark.usefixtures("no_curves")
def test_the_actor_does_not_change_during_critic_warmup(workspace, tmp_path) -> None:
    run = make_training(workspace, tmp_path, "cloned", PMPOObjective(), steps=UPDATE, critic_warmup_steps=UPDATE)
    run.run()
    policy = run.load_policy()
    features = torch.randn(9, 32)
    assert (policy.actor_critic.actor(features).kl_divergence(policy.prior(features)) == 0).all()
    assert any((weight != 0).any() for weight in policy.actor_critic.critic.output.parameters())


def test_rollouts_equal_steps_of_the_simulator(workspace) -> None:
    world, contexts = learned_world(steps=1), ContextSampler(str(workspace / "data"), 3, HORIZON)
    torch.manual_seed(0)
    policy = POLICIES["features"](world, simulator_env_spaces(world, "features"))
    context = contexts.sample(3)
    torch.manual_seed(1)
    rollout = imagine_rollout(world, policy, context, 4, "features")
    torch.manual_seed(1)
    state, _ = world.reset(context.frames, torch.randint(2**63 - 1, (3,)), context.actions)
    assert not rollout.reward[0].any() and not rollout.terminated[0].any()
    for t in range(4):
        assert torch.equal(rollout.observation[t], world.features(state))
        state, output = world.step(state, rollout.action[t], decode=False)
        assert torch.equal(rollout.reward[t + 1], output.reward)
        assert torch.equal(rollout.terminated[t + 1], output.terminated)
    assert torch.equal(rollout.observation[4], world.features(state))
    assert not rollout.observation.is_inference()  # inference tensors cannot be trained on


def test_an_ensemble_follows_its_first_member_and_subtracts_the_uncertainty(workspace) -> None:
    world, other = learned_world(steps=1), learned_world(steps=1)
    with torch.no_grad():
        for weight in other.dynamics.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
    torch.manual_seed(0)
    policy = POLICIES["features"](world, simulator_env_spaces(world, "features"))
    context = ContextSampler(str(workspace / "data"), 3, HORIZON).sample(3)

    def roll_out(simulator) -> ImaginedRollout:
        torch.manual_seed(1)
        return imagine_rollout(simulator, policy, context, 4, "features")

    alone, penalized = (
        roll_out(world),
        roll_out(EnsembleSimulator([world, other], uncertainty_penalty=2.0, followed_member="first")),
    )
    assert torch.equal(penalized.observation, alone.observation) and torch.equal(penalized.action, alone.action)
    assert not alone.uncertainty.any() and not penalized.uncertainty[0].any() and (penalized.uncertainty[1:] > 0).all()
    torch.testing.assert_close(penalized.reward, alone.reward - 2 * penalized.uncertainty)
    ended = roll_out(EnsembleSimulator([world, other], uncertainty_limit=1e-9, followed_member="first")).terminated
    assert not ended[0].any() and ended[1:].all()


@pytest.mark.usefixtures("no_curves")
def test_uncertainty_is_logged_and_lowers_imagined_rewards(workspace, tmp_path) -> None:
    other = learned_world(steps=1)
    save_simulator(other, tmp_path / "other")
    ensemble = {"bundles": [tmp_path / "other"], "uncertainty_penalty": 5.0}
    for name, settings in {"plain": {}, "penalized": {"ensemble": ensemble}}.items():
        make_training(workspace, tmp_path / name, **settings).run()
    plain, penalized = (tmp_path / name / "metrics" / "updates.csv" for name in ("plain", "penalized"))
    assert all(value > 0 for value in read_column(penalized, "uncertainty")) and "uncertainty" not in plain.read_text()
    assert read_column(penalized, "imagined_reward")[0] < read_column(plain, "imagined_reward")[0]


def test_the_carry_encodes_the_context_frames(workspace) -> None:
    world = diffusion_world()
    torch.manual_seed(0)
    policy = POLICIES["frame"](world, simulator_env_spaces(world, "frame"))
    context = ContextSampler(str(workspace / "data"), 3, HORIZON).sample(2)
    rollout = imagine_rollout(world, policy, context, 1, "frame")
    carry, _ = policy.encode_sequence(policy.init_carry(2), context.frames[:, :2].transpose(0, 1))
    assert all(torch.allclose(a, b) for a, b in zip(rollout.carry, carry, strict=True))
    assert torch.equal(rollout.observation[0], context.frames[:, 2])  # the tokenizer of pixels is lossless


def test_context_frames_are_reconstructed_by_the_tokenizer(workspace) -> None:
    """In the real environment, too, the policy observes frames that the lossy tokenizer has reconstructed."""
    world = genie()
    torch.manual_seed(0)
    policy = POLICIES["frame"](world, simulator_env_spaces(world, "frame"))
    frames = torch.randint(256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    rollout = imagine_rollout(
        world, policy, SimulatorContext(frames, None, torch.ones(2, dtype=torch.bool)), 1, "frame"
    )
    reconstructed = reconstruct_frames(world, frames)
    assert torch.equal(rollout.observation[0], reconstructed[:, -1]) and not torch.equal(reconstructed, frames)
    carry, _ = policy.encode_sequence(policy.init_carry(2), reconstruct_frames(world, frames[:, :-1]).transpose(0, 1))
    assert all(torch.allclose(a, b) for a, b in zip(rollout.carry, carry, strict=True))


def test_a_step_of_several_frames_is_observed_at_its_last_frame() -> None:
    k, world = 4, latent_frames_world(4, outcomes=True)
    torch.manual_seed(0)
    policy = POLICIES["frame"](world, simulator_env_spaces(world, "frame"))
    frames = torch.randint(256, (2, 11, 8, 8, 3), dtype=torch.uint8)  # the last 9 are three latents
    context = SimulatorContext(frames, None, torch.ones(2, dtype=torch.bool))
    torch.manual_seed(1)
    rollout = imagine_rollout(world, policy, context, 2, "frame")
    shown = world.reconstruct(frames[:, 2:])[1]
    expected, _ = policy.encode_sequence(policy.init_carry(2), shown[:, [0, k]].transpose(0, 1))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(rollout.carry, expected, strict=True))
    torch.manual_seed(1)
    state, frame = world.reset(frames, torch.randint(2**63 - 1, (2,)))
    assert torch.equal(rollout.observation[0], frame)
    for i in range(2):
        state, out = world.step(state, rollout.action[i])
        assert torch.equal(rollout.observation[i + 1], out.frame[:, -1])
        assert torch.equal(rollout.reward[i + 1], out.reward)


def test_ensemble_frames_equal_those_of_its_first_member() -> None:
    """This includes the context frames, which its tokenizer reconstructs."""
    world, other = genie(), genie()
    torch.manual_seed(0)
    policy = POLICIES["frame"](world, simulator_env_spaces(world, "frame"))
    context = SimulatorContext(
        torch.randint(256, (2, 4, 16, 16, 3), dtype=torch.uint8), None, torch.ones(2, dtype=torch.bool)
    )
    rollouts = []
    for simulator in (world, EnsembleSimulator([world, other], followed_member="first")):
        torch.manual_seed(1)
        rollouts.append(imagine_rollout(simulator, policy, context, 2, "frame"))
    alone, ensemble = rollouts
    assert all(torch.equal(a, b) for a, b in zip(alone.carry, ensemble.carry, strict=True))
    assert torch.equal(alone.observation, ensemble.observation) and torch.equal(alone.action, ensemble.action)


def test_rewards_after_termination_do_not_count() -> None:
    reward = torch.tensor([[0.0, 0], [1, 3], [2, 5], [4, 7]])
    terminated = torch.tensor([[False, False], [True, False], [False, False], [False, False]])
    rollout = ImaginedRollout((), reward, reward[:-1].long(), reward, terminated, torch.zeros(4, 2))
    assert mean_reward_per_step(rollout, torch.tensor([True, True])) == (1 + 3 + 5 + 7) / 4
    assert mean_reward_per_step(rollout, torch.tensor([False, True])) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": PMPOObjective()}, "beta=0.3.*FeatureActorCriticPolicy does not have: set objective.beta=0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"discount": 0.0}, "discount must lie in 0..1"),
        ({"critic_warmup_steps": -1}, "critic_warmup_steps must be 0 or more, got -1"),
        (
            {"ensemble": {"uncertainty_penalty": 1.0}},
            "uncertainty_penalty=1 and uncertainty_limit=None require an ensemble",
        ),
        (
            {"ensemble": {"uncertainty_limit": 0.5}},
            "uncertainty_penalty=0 and uncertainty_limit=0.5 require an ensemble",
        ),
    ],
)
def test_rejects_settings_out_of_range(workspace, tmp_path, settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_training(workspace, tmp_path, **settings).run()


@pytest.mark.usefixtures("no_curves")
def test_rejects_the_checkpoint_of_another_policy(workspace, tmp_path) -> None:
    make_training(workspace, tmp_path, steps=UPDATE).run()
    with pytest.raises(ValueError, match="is of another agent or environment"):
        make_training(workspace, tmp_path, "cloned", PMPOObjective()).run()
    with pytest.raises(FileNotFoundError, match="has not saved a checkpoint yet"):
        make_training(workspace, tmp_path / "other").load_policy()


@pytest.mark.parametrize(("policy", "warmup"), [("features", 0), ("frame", 2 * UPDATE)])
def test_captured_updates_equal_plain_ones(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, warmup: int
) -> None:
    """On a recording backend (tests/recording_backend.py), over rollouts that differ, and from a checkpoint on."""
    backend, trained = RecordingBackend(), {}
    for way in ("plain", "captured"):
        monkeypatch.setattr(imagination, "make_capture_backend", lambda *_: backend)
        training = make_training(
            workspace, tmp_path / way, policy, steps=12 * UPDATE, every=100 * UPDATE, critic_warmup_steps=warmup
        )
        for steps in (6, 6):  # the second half resumes
            training.set_up()
            learning = training.algorithm
            if way == "plain":
                learning.captured_updates = None
            for _ in range(steps):
                learning.step()
            training.save()
        assert way == "plain" or (learning.captured_updates.captured and not learning.captured_updates.failed)
        trained[way] = learning.policy.state_dict()
    assert backend.replays >= 4
    assert all(torch.equal(trained["plain"][name], trained["captured"][name]) for name in trained["plain"])
