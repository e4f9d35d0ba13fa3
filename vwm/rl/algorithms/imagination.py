"""Learning in imagination alone: a policy that improves on what a learned world makes of a recording's moments.

Dreamer 4's third phase (arXiv 2509.24527, section 3.3) and, over pictures, IRIS' and DIAMOND's setting, offline: no
real step is taken in training. The world stays as it is.

Legend: n ways, h steps of the horizon. Time comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vwm.core.capabilities import EstimatesUncertainty
from vwm.core.checks import check_positive
from vwm.core.simulator import Simulator
from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import EnvSpaces
from vwm.rl.agent import PolicyCarry
from vwm.rl.algorithms.actor_critic import ActorCriticLosses, ImaginedTrajectory
from vwm.rl.algorithms.actor_critic_policy import ActorCriticPolicy
from vwm.rl.algorithms.encoded_env import EncodedEnvSpec, reconstruct_frames
from vwm.rl.algorithms.policy_objectives import PolicyObjective
from vwm.rl.context_sampler import ContextSampler, SimulatorContext
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, evaluate_and_log, is_best_evaluation
from vwm.rl.finite_checks import require_finite
from vwm.rl.online_training import interval_crossed
from vwm.rl.simulated_env import SimulatedEnvSpec, check_ensemble_settings
from vwm.rl.training_run import TrainingRun
from vwm.runs.checkpoints import load_best_weights, load_checkpoint, save_best_weights, save_checkpoint
from vwm.runs.metric_tables import MetricTable, average_update_logs, open_metric_tables
from vwm.runs.rng_states import restore_rng_states
from vwm.runs.run_folder import RunFolder
from vwm.runs.stop_signal import StopRequest
from vwm.runs.training_runtime import compile_networks
from vwm.worlds.bundle import load_simulator
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.world_batch import OBSERVE_FRAME, blank_context, select_observation


class ImaginationTraining(TrainingRun):
    """A policy that learns in a world from the moments of a recording on.

    Every number of steps counts decisions in the world. The run's folder holds ``evaluations.csv`` (of the real game,
    the first before anything was learned: the cloned policy's), ``episodes.csv`` (what the world says that the policy
    earns: its reward a decision, from evenly drawn contexts, times the length of the last evaluation's episodes, so
    that the two can be compared: where they part, the policy has come to live on the world's faults),
    ``updates.csv``, ``curves.png``, ``videos/`` and ``checkpoints/``. A run that stopped goes on from the checkpoint,
    and becomes what it would have become unbroken.

    Args:
        run: folder of everything the run writes.
        bundle: folder of the world.
        data: the recording.
        policy: who learns.
        objective: by what.
        eval_env: the real game, with the size and the action repeat of the recording; the policy sees it through the
            world. None evaluates in the world itself.
        observe: what the policy sees: ``"features"``, ``"latent"`` or ``"frame"``; see ``EncodedEnvSpec``.
        steps: decisions in all.
        batch_size: contexts of an update, each imagined on from once.
        context: frames of each; 0 takes as many as the world likes.
        relevant: see ``ContextSampler``.
        horizon: decisions from each context on. It is cut off there, not at an end: the critic says what follows.
        others: bundles of worlds that learned the same game otherwise (from another seed), which live through the same
            actions: where they disagree with ``bundle``, none of them is to be trusted; see ``EnsembleSimulator``.
            ``updates.csv`` then has the mean ``uncertainty``, from which ``penalty`` and ``limit`` can be chosen.
        penalty, limit: what disagreement costs (``episodes.csv`` has what is left), and where it ends a way.
        discount: of rewards, a decision.
        passes: how often the policy learns from the same ways.
        lr, critic_lr: of Adam; the critic's is the same by default.
        clip: largest norm of the gradient, of the critic and of the rest.
        critic_warmup_steps: decisions before the actor begins to learn, so that the critic knows what the policy is
        worth.
        evaluate_every: decisions from one evaluation to the next.
        evaluate_episodes: of one.
        checkpoint_every: decisions from one checkpoint to the next.
        log_every: updates whose numbers are averaged to one row of ``updates.csv``.
        video: write a video of every evaluation's first episode.
        seed: of everything random.
        device: ``auto`` takes a GPU where there is one.
        threads: of torch on the CPU; 0 leaves torch's choice.

    Raises:
        ValueError: a setting makes no sense.
    """

    def __init__(
        self,
        run: Path,
        bundle: Path,
        data: str,
        policy: Callable[[Simulator, EnvSpaces], ActorCriticPolicy],
        objective: PolicyObjective,
        eval_env: EnvSpec | None = None,
        observe: Literal["features", "latent", "frame"] = "features",
        steps: int = 500_000,
        batch_size: int = 32,
        context: int = 0,
        relevant: float = 0.0,
        horizon: int = 16,
        others: Sequence[Path] = (),
        penalty: float = 0.0,
        limit: float | None = None,
        discount: float = 0.997,
        passes: int = 1,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        clip: float = 1.0,
        critic_warmup_steps: int = 0,
        evaluate_every: int = 50_000,
        evaluate_episodes: int = 20,
        checkpoint_every: int = 10_000,
        log_every: int = 10,
        video: bool = True,
        seed: int = 0,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        check_positive(steps=steps, batch_size=batch_size, horizon=horizon, passes=passes, log_every=log_every)
        check_positive(evaluate_every=evaluate_every, evaluate_episodes=evaluate_episodes)
        check_positive(checkpoint_every=checkpoint_every)
        if context < 0 or critic_warmup_steps < 0:
            raise ValueError(
                f"context and critic_warmup_steps must be 0 or more, got {context} and {critic_warmup_steps}"
            )
        if not 0 < discount <= 1 or not lr > 0 or not clip > 0:
            raise ValueError(f"discount must lie in 0..1, lr and clip be above 0; got {discount}, {lr} and {clip}")
        check_ensemble_settings(others, penalty, limit)
        if threads:
            torch.set_num_threads(threads)
        self.folder, self.bundle, self.data = Path(run), bundle, data
        self.make_policy, self.objective, self.observe = policy, objective, observe
        self.game: EnvSpec = SimulatedEnvSpec(bundle, data, time_limit=horizon, observe=observe, device=device)
        self.eval_env: EnvSpec = EncodedEnvSpec(eval_env, bundle, observe, device) if eval_env else self.game
        self.steps, self.batch_size, self.context, self.relevant = steps, batch_size, context, relevant
        self.others, self.penalty, self.limit = tuple(others), penalty, limit
        self.horizon, self.discount, self.passes, self.critic_warmup_steps = (
            horizon,
            discount,
            passes,
            critic_warmup_steps,
        )
        self.lr, self.critic_lr, self.clip = lr, critic_lr or lr, clip
        self.evaluate_every, self.evaluate_episodes = evaluate_every, evaluate_episodes
        self.checkpoint_every, self.log_every, self.video, self.seed = checkpoint_every, log_every, video, seed
        self.device = device

    def run(self) -> None:
        """See ``TrainingRun.run``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        student = ImaginationTrainerState(self)
        contexts = ContextSampler(
            self.data,
            self.context or student.simulator.spec.context_frames,
            self.horizon,
            self.relevant,
            actions=not student.simulator.spec.actions.latent,
        )
        student.open_logs()
        if self.runtime.compile:
            compile_networks(student.policy)
        with (
            tqdm(total=self.steps, initial=student.played, unit="decision", smoothing=0.05) as bar,
            StopRequest() as stop,
        ):
            if not student.played:
                student.judge(bar)
            while student.played < self.steps and not stop:
                before = student.played
                student.learn(contexts.draw(self.batch_size))
                over = student.played >= self.steps
                if interval_crossed(before, student.played, self.evaluate_every) or over:
                    student.judge(bar)
                if interval_crossed(before, student.played, self.checkpoint_every) or over or stop:
                    student.save()
                bar.update(student.played - before)
        stop.end(f"{student.played} decisions are saved in {self.folder}")

    def player(self, best: bool = False) -> ActorCriticPolicy:
        """The policy as it was saved last, or as it did best. Raises FileNotFoundError where nothing was saved yet."""
        RunFolder(self.folder).find_last_checkpoint()
        policy = ImaginationTrainerState(self).policy
        if best:
            load_best_weights(RunFolder(self.folder), policy)
        return policy


class ImaginationTrainerState:
    """A policy in its world, and everything that a checkpoint holds.

    Args:
        training: the settings.
    """

    def __init__(self, training: ImaginationTraining) -> None:
        self.training = training
        # Before the seed is set: a policy begins as the same one whether its world is doubted or not.
        others = [load_simulator(other, training.device) for other in training.others]
        torch.manual_seed(training.seed)
        self.simulator = load_simulator(training.bundle, training.device)
        self.world: Simulator = self.simulator
        if others:
            members = [self.simulator, *others]
            self.world = EnsembleSimulator(members, training.penalty, training.limit, follow="first")
        self.policy = training.make_policy(self.simulator, simulator_env_spaces(self.simulator, training.observe))
        self.policy = self.policy.to(self.simulator.device)
        self._check_prior()
        critic = list(self.policy.behaviour.critic.parameters())
        theirs = {id(weight) for weight in critic}
        rest = [w for w in self.policy.parameters() if w.requires_grad and id(w) not in theirs]
        self.optimizers = {
            "actor": torch.optim.Adam(rest, training.lr),
            "critic": torch.optim.Adam(critic, training.critic_lr),
        }
        self.played, self.updated, self.length, self.random = 0, 0, float("nan"), float("nan")
        self.sums: dict[str, float] = {}
        self.tables: dict[str, MetricTable] = {}
        checkpoint = RunFolder(training.folder).last_checkpoint
        if checkpoint.is_file():
            self.load(checkpoint)

    def open_logs(self) -> None:
        """Begin to write: what was written after the checkpoint is taken out."""
        training = self.training
        names = ("episodes", "evaluations", "updates")
        if self.played:
            print(f"going on from {RunFolder(training.folder).last_checkpoint}, {self.played} decisions")
        step = self.played or -1
        self.tables = open_metric_tables(RunFolder(training.folder), names, step, training.runtime.loggers)

    def judge(self, bar: tqdm[Any]) -> None:
        """Play the real game."""
        training = self.training
        if not self.played:
            found = evaluate_policy(
                None, training.eval_env, training.evaluate_episodes, training.seed + EVALUATION_SEED_OFFSET
            )
            self.random = float(found.returns.mean())
        name = type(self.policy).__name__
        found = evaluate_and_log(training, self.policy, name, self.played, self.tables, self.random)
        if is_best_evaluation(self.tables["evaluations"].rows()):
            save_best_weights(RunFolder(training.folder), self.policy)
        self.length = float(found.lengths.mean())
        low, high = found.interval()
        bar.set_postfix_str(f"return {found.returns.mean():.1f} [{low:.1f}, {high:.1f}]")

    def learn(self, context: SimulatorContext) -> None:
        """One update: imagine, and learn from it."""
        training, began = self.training, time.perf_counter()
        dreamt = imagine_rollout(self.world, self.policy, context, training.horizon, training.observe)
        spent = time.perf_counter() - began
        self.played += training.batch_size * training.horizon
        for _ in range(training.passes):
            with training.runtime.autocast():
                logs = self.improve(dreamt)
        self.updated += 1
        seconds = {"seconds": time.perf_counter() - began, "seconds_in_the_world": spent}
        logs |= {"imagined_reward": mean_reward_per_step(dreamt, context.uniform), **seconds}
        if training.others:
            logs["uncertainty"] = float(dreamt.uncertainty[1:].mean())
        if means := average_update_logs(self.sums, logs, self.updated, training.log_every):
            self.tables["updates"].add(self.played, **means)
            imagined = {"return": means["imagined_reward"] * self.length, "length": self.length}
            self.tables["episodes"].add(self.played, **imagined)

    def improve(self, dreamt: ImaginedRollout) -> dict[str, float]:
        """One step of the optimizers. Raises FloatingPointError, before it, where a loss is not finite."""
        learnt = imagination_losses(self.policy, self.training.objective, dreamt, self.training.discount)
        logs = require_finite(learnt.logs)
        ready = self.played > self.training.critic_warmup_steps
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        (learnt.critic + learnt.actor if ready else learnt.critic).backward()
        for optimizer in self.optimizers.values():
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.training.clip)
            optimizer.step()
        self.policy.behaviour.follow()
        return logs

    def save(self) -> None:
        """Write the checkpoint."""
        counters = {n: getattr(self, n) for n in ("played", "updated", "length", "random", "sums")}
        save_checkpoint(
            RunFolder(self.training.folder).last_checkpoint, {"policy": self.policy}, self.optimizers, counters
        )

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError where it is of another policy or world."""
        state = load_checkpoint(path, {"policy": self.policy}, self.optimizers, "policy or world")
        vars(self).update(state["counters"])
        restore_rng_states(state["generators"])

    def _check_prior(self) -> None:
        policy, objective = self.policy, self.training.objective
        shape = (1, *policy.spaces.observation)
        blank = torch.zeros(shape, dtype=torch.uint8 if policy.spaces.pixels else torch.float32, device=policy.device)
        _, features = policy.see(policy.init_carry(1), blank, torch.ones(1, dtype=torch.bool, device=policy.device))
        if objective.beta and policy.prior(features) is None:
            raise ValueError(
                f"{type(objective).__name__} holds to a cloned policy (beta={objective.beta:g}), which a "
                f"{type(policy).__name__} has not: set objective.beta=0, or take a ClonedPolicy"
            )


class ImaginedRollout(NamedTuple):
    """Ways through a world.

    Attributes:
        carry: what the policy remembered at their first moment, before it saw that.
        observation: [h + 1, n, ...].
        action: int64 [h, n] or float [h, n, a], as drawn: beyond [-1, 1] the bound was played.
        reward: float [h + 1, n], on arriving; 0 at the first moment.
        terminated: bool [h + 1, n], whether the world ended there.
        uncertainty: float [h + 1, n], how much the worlds disagreed on it; 0 of one alone.
    """

    carry: PolicyCarry
    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    uncertainty: Tensor


@torch.no_grad()
def imagine_rollout(
    simulator: Simulator, policy: ActorCriticPolicy, context: SimulatorContext, horizon: int, observe: str
) -> ImaginedRollout:
    """Follow a policy into a world.

    Args:
        simulator: the world, or an ensemble that follows its first member.
        policy: draws its actions, by torch's generator, as are the worlds' seeds.
        context: where to begin, n.
        horizon: h. A world that ends is stepped on, for the sake of the batch; nothing of that counts.
        observe: see ``ImaginationTraining``.
    """
    count, device = len(context.frames), policy.device
    nowhere, nothing = torch.zeros(count, dtype=torch.bool, device=device), torch.zeros(count, device=device)
    state, frame = simulator.reset(context.frames, torch.randint(2**63 - 1, (count,)), context.actions)
    carry = policy.init_carry(count)
    if observe == OBSERVE_FRAME and context.frames.shape[1] > 1:
        before = reconstruct_frames(
            simulator, context.frames[:, :-1].to(device)
        )  # as it sees all others, real ones included
        carry, _ = policy.look(carry, before.transpose(0, 1))
    first, seen = carry, [select_observation(simulator, observe, state, frame)]
    actions, rewards, ends, doubts = [], [nothing], [nowhere], [nothing]
    for _ in range(horizon):
        carry, features = policy.see(carry, seen[-1], nowhere)
        action = policy.behaviour.actor(features).sample()
        played = action.clamp(-1, 1) if action.is_floating_point() else action
        state, output = simulator.step(state, played, decode=observe == OBSERVE_FRAME)
        seen.append(select_observation(simulator, observe, state, output.frame))
        actions.append(action)
        rewards.append(output.reward.float())
        ends.append(output.terminated)
        doubts.append(simulator.uncertainty(state) if isinstance(simulator, EstimatesUncertainty) else nothing)
    shown = (torch.stack(of) for of in (seen, actions, rewards, ends, doubts))
    return ImaginedRollout(first, *shown)


def imagination_losses(
    policy: ActorCriticPolicy, objective: PolicyObjective, dreamt: ImaginedRollout, discount: float
) -> ActorCriticLosses:
    """What a policy learns from ways: beyond the horizon the critic has the word, after an end there is nothing."""
    _, features = policy.look(dreamt.carry, dreamt.observation)
    goes_on = (~dreamt.terminated).to(dreamt.reward.dtype)
    way = ImaginedTrajectory(features, dreamt.action, dreamt.reward, discount * goes_on, goes_on.cumprod(0))
    here = features[:-1]
    return objective.losses(policy.behaviour, way, policy.behaviour.actor(here), policy.prior(here))


def mean_reward_per_step(dreamt: ImaginedRollout, of: Tensor) -> float:
    """The mean reward of a decision, of the ways under the mask (bool [n]), up to their ends."""
    counts = (~dreamt.terminated).cumprod(0)[:-1, of.to(dreamt.reward.device)]
    return float((dreamt.reward[1:, of.to(dreamt.reward.device)] * counts).sum() / counts.sum())


def simulator_env_spaces(simulator: Simulator, observe: str) -> EnvSpaces:
    """What a world shows and takes, where it is observed like this. How long vectors are is seen in one world."""
    if observe == OBSERVE_FRAME:
        return EnvSpaces(simulator.spec.observation.shape, simulator.spec.actions)
    shape = select_observation(simulator, observe, *simulator.reset(blank_context(simulator))).shape
    return EnvSpaces(tuple(shape[1:]), simulator.spec.actions)
