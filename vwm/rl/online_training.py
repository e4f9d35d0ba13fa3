"""Learning while playing: act, keep, update, evaluate, save; the loop that all agents with a replay share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten
from tqdm import tqdm

from vwm.core.checks import check_positive
from vwm.core.devices import resolve_device
from vwm.envs.batched_envs import BatchedEnv, EnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import Agent, PolicyCarry, ReplayBatch
from vwm.rl.evaluation import evaluate_policy, sample_random_actions, time_step_to_device
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, evaluate_and_log, is_best_evaluation
from vwm.rl.replay_buffer import ReplayBuffer
from vwm.rl.training_run import TrainingRun
from vwm.runs.checkpoints import load_best_weights, load_checkpoint, save_best_weights, save_checkpoint
from vwm.runs.metric_tables import MetricTable, average_update_logs, open_metric_tables
from vwm.runs.rng_states import restore_rng_states
from vwm.runs.run_folder import RunFolder
from vwm.runs.stop_signal import StopRequest
from vwm.runs.training_runtime import compile_networks


class OnlineTraining(TrainingRun):
    """An agent that plays and learns in turn.

    Every number of steps counts decisions over all environments. The run's folder holds ``metrics/episodes.csv``,
    ``evaluations.csv`` and ``updates.csv``, ``curves.png``, ``videos/`` and ``checkpoints/``; a run that stopped
    continues from the checkpoint, and becomes what it would have become unbroken. The weights with the best evaluation
    are kept, too.

    Args:
        run: folder of everything the run writes.
        game: what is played.
        agent: who learns.
        steps: decisions in all.
        environments: copies of the game that are played side by side.
        prefill: decisions at random before the first update.
        pretrain: updates before the first decision that is not random.
        updates: how many for each decision after that (the replay ratio over batch size times length).
        capacity: moments that the replay holds.
        disk: keep the replay's moments in files rather than in memory.
        evaluate_every: decisions from one evaluation to the next.
        evaluate_episodes: of one.
        eval_env: the game of evaluations, where it is another than that of training: the real one of an agent that
            lives in a learned world. What it earns in both is drawn side by side, and where the two part it has come to
            live on the world's faults.
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
        game: EnvSpec,
        agent: Callable[[EnvSpaces], Agent],
        steps: int = 100_000,
        environments: int = 1,
        prefill: int = 1000,
        pretrain: int = 0,
        updates: float = 1.0,
        capacity: int = 1_000_000,
        disk: bool = False,
        evaluate_every: int = 10_000,
        evaluate_episodes: int = 20,
        eval_env: EnvSpec | None = None,
        checkpoint_every: int = 10_000,
        log_every: int = 100,
        video: bool = True,
        seed: int = 0,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        check_positive(steps=steps, environments=environments, capacity=capacity, log_every=log_every)
        check_positive(evaluate_every=evaluate_every, evaluate_episodes=evaluate_episodes)
        check_positive(checkpoint_every=checkpoint_every)
        if prefill < 0 or pretrain < 0 or updates < 0:
            raise ValueError(f"prefill, pretrain and updates must be 0 or more, got {prefill}, {pretrain}, {updates}")
        if threads:
            torch.set_num_threads(threads)
        self.folder, self.game, self.make_agent = Path(run), game, agent
        self.eval_env = eval_env or game
        self.steps, self.environments, self.prefill, self.pretrain = steps, environments, prefill, pretrain
        self.updates, self.capacity, self.disk = updates, capacity, disk
        self.evaluate_every, self.evaluate_episodes = evaluate_every, evaluate_episodes
        self.checkpoint_every, self.log_every, self.video = checkpoint_every, log_every, video
        self.seed = seed
        self.device = resolve_device(device)

    def run(self) -> None:
        """See ``TrainingRun.run``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        life = OnlineTrainerState(self)
        life.open_logs()
        if self.runtime.compile:
            compile_networks(life.agent)
        with tqdm(total=self.steps, initial=life.played, unit="decision", smoothing=0.05) as bar, StopRequest() as stop:
            while life.played < self.steps and not stop:
                before = life.played
                life.decide()
                life.learn()
                if interval_crossed(before, life.played, self.evaluate_every) or life.played >= self.steps:
                    name = type(life.agent).__name__
                    found = evaluate_and_log(self, life.agent, name, life.played, life.tables, life.random)
                    if is_best_evaluation(life.tables["evaluations"].rows()):
                        save_best_weights(RunFolder(self.folder), life.agent)
                    low, high = found.interval()
                    bar.set_postfix_str(f"return {found.returns.mean():.1f} [{low:.1f}, {high:.1f}]")
                if interval_crossed(before, life.played, self.checkpoint_every) or life.played >= self.steps or stop:
                    life.save()
                bar.update(life.played - before)
        life.close()
        stop.end(f"{life.played} decisions are saved in {self.folder}")

    def player(self, best: bool = False) -> Agent:
        """The agent as it was saved last, or as it did best; of a run that is still going on, too.

        Raises:
            FileNotFoundError: nothing was saved yet.
            ValueError: what was saved is of another agent or game.
        """
        worlds = self.game.open(1, self.seed)
        worlds.close()
        agent = self.make_agent(worlds.spaces).to(self.device)
        if best:
            load_best_weights(RunFolder(self.folder), agent)
        else:
            load_checkpoint(RunFolder(self.folder).find_last_checkpoint(), {"agent": agent}, {}, "agent or game")
        return agent

    def played(self, agent: Agent, ring: Path) -> ReplayBuffer:
        """What was played until the last checkpoint; the run's own files stay as they are.

        Args:
            agent: as ``player`` gave it.
            ring: folder for the moments, where the run keeps them in files.

        Raises:
            FileNotFoundError: nothing was saved yet.
        """
        replay = self.make_replay(agent, ring)
        path = RunFolder(self.folder).find_last_checkpoint()
        replay.load(path.parent / "replay", load_checkpoint(path, {}, {}, "agent or game")["replay"])
        return replay

    def make_replay(self, agent: Agent, ring: Path) -> ReplayBuffer:
        """An empty one, in memory or in the folder."""
        folder = ring if self.disk else None
        return ReplayBuffer(self.capacity, self.environments, agent.spaces, agent.extras, self.seed, folder)


class OnlineTrainerState:
    """An agent in its environments, with all that it has played: everything that a checkpoint holds.

    Args:
        training: the settings.
    """

    def __init__(self, training: OnlineTraining) -> None:
        self.training = training
        torch.manual_seed(training.seed)
        self.worlds: BatchedEnv = training.game.open(training.environments, training.seed)
        self.agent = training.make_agent(self.worlds.spaces).to(training.device)
        self.replay = training.make_replay(self.agent, training.folder / "ring")
        self.played, self.updated, self.due = 0, 0, 0.0
        self.returns, self.lengths = torch.zeros(training.environments), torch.zeros(training.environments)
        self.sums: dict[str, float] = {}
        self.random = float("nan")
        self.carry: PolicyCarry = self.agent.init_carry(training.environments)
        checkpoint = RunFolder(training.folder).last_checkpoint
        if checkpoint.is_file():
            self.load(checkpoint)
            print(f"going on from {checkpoint}, {self.played} decisions")
        else:
            played = evaluate_policy(
                None, training.eval_env, training.evaluate_episodes, training.seed + EVALUATION_SEED_OFFSET
            )
            self.random = float(played.returns.mean())
            self.moment = self.worlds.reset()
        self.tables: dict[str, MetricTable] = {}
        start = training.prefill * training.updates
        self.agent.begin(training.pretrain + int(training.steps * training.updates - start))

    def open_logs(self) -> None:
        """Begin to write: what was written after the checkpoint is taken out, of the replay, too."""
        self.replay.prune(RunFolder(self.training.folder).checkpoints / "replay")
        names = ("episodes", "evaluations", "updates")
        loggers = self.training.runtime.loggers
        self.tables = open_metric_tables(RunFolder(self.training.folder), names, self.played, loggers)

    @torch.no_grad()
    def decide(self) -> None:
        """One decision in every environment."""
        count = self.training.environments
        seen = time_step_to_device(self.moment, self.agent.device)
        if self.played < self.training.prefill:
            random = sample_random_actions(self.worlds.spaces, count).to(self.agent.device)
            acted = self.agent.watch(self.carry, seen, random)
        else:
            acted = self.agent.act(self.carry, seen, explore=True)
        action, self.carry = acted.action.cpu(), acted.carry
        self.replay.add(self.moment, action, acted.extras)
        self.moment = self.worlds.step(action)
        self.played += count
        self.count(self.moment)

    def count(self, moment: TimeStep) -> None:
        """Add up episodes, and write down those that end."""
        self.returns = torch.where(moment.is_first, 0, self.returns) + moment.reward
        self.lengths = torch.where(moment.is_first, 0, self.lengths + 1)
        for copy in moment.is_last.nonzero().flatten().tolist():
            self.tables["episodes"].add(
                self.played, **{"return": float(self.returns[copy]), "length": float(self.lengths[copy])}
            )

    def learn(self) -> None:
        """The updates that are due."""
        training, agent = self.training, self.agent
        if self.played < training.prefill or not self.replay.can_sample(agent.batch_length):
            return
        self.due += training.environments * training.updates + (training.pretrain if not self.updated else 0)
        while self.due >= 1:
            batch = self.replay.sample(agent.batch_size, agent.batch_length, agent.single_episode, agent.lead)
            self.due -= 1
            self.updated += 1
            began = time.perf_counter()
            with training.runtime.autocast():
                done = agent.update(replay_batch_to_device(batch, agent.device))
            if done.places is not None:
                self.replay.write(done.places, {name: _to_float32(value) for name, value in done.extras.items()})
            logs = {**done.logs, "seconds": time.perf_counter() - began}
            if means := average_update_logs(self.sums, logs, self.updated, training.log_every):
                self.tables["updates"].add(self.played, **means)

    def save(self) -> None:
        """Write the checkpoint: what is large first, aside, and at last the small file that names it."""
        path = RunFolder(self.training.folder).last_checkpoint
        save_checkpoint(
            path,
            {"agent": self.agent},
            self.agent.optimizers(),
            {n: getattr(self, n) for n in ("played", "updated", "due", "random", "sums")},
            carry=tree_leaves(self.carry),
            worlds=self.worlds.state_dict(),
            replay=self.replay.save(path.parent / "replay"),
            episodes=(self.returns, self.lengths),
        )
        self.replay.prune(path.parent / "replay")

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError where it is of another agent or game."""
        state = load_checkpoint(path, {"agent": self.agent}, self.agent.optimizers(), "agent or game")
        spec = tree_structure(self.agent.init_carry(self.training.environments))
        self.carry = tree_unflatten([leaf.to(self.agent.device) for leaf in state["carry"]], spec)
        self.replay.load(path.parent / "replay", state["replay"])
        vars(self).update(state["counters"])
        self.returns, self.lengths = state["episodes"]
        self.moment = self.worlds.load_state_dict(state["worlds"])
        restore_rng_states(state["generators"])

    def close(self) -> None:
        """Free the games."""
        self.worlds.close()


def interval_crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return after // every > before // every


def _to_float32(values: Tensor) -> Tensor:
    """Undo autocast: NumPy, in which replay stores, has no bfloat16."""
    return values.float() if values.dtype == torch.bfloat16 else values


def replay_batch_to_device(batch: ReplayBatch, device: torch.device) -> ReplayBatch:
    """The batch's tensors there."""

    def move(leaf: Tensor) -> Tensor:
        return leaf.to(device, non_blocking=True)

    return batch._replace(
        **{name: tree_map(move, value) for name, value in batch._asdict().items() if name != "places"}
    )
