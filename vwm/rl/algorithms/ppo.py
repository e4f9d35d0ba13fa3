"""Stable-Baselines3's PPO in any game, real or learned: the model-free agent that others are measured beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwm.core.atomic_files import atomic_write
from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import TimeStep
from vwm.rl.agent import PolicyCarry, PolicyStep
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, evaluate_and_log, is_best_evaluation
from vwm.rl.online_training import interval_crossed
from vwm.rl.training_run import TrainingRun
from vwm.runs.metric_tables import MetricTable, open_metric_tables
from vwm.runs.run_folder import RunFolder

PPO_MODEL_FILE, PPO_BEST_MODEL_FILE = "ppo.zip", "best.zip"


class PPOTraining(TrainingRun):
    """Proximal policy optimisation (arXiv 1707.06347), by Stable-Baselines3 (``pip install 'vwm[sb3]'``).

    The folder holds ``metrics/``, ``curves.png``, ``videos/`` and, in ``checkpoints/``, the model, ``ppo.zip``, and the
    one with the best evaluation, ``best.zip``. A run that stopped goes on from its last evaluation, in fresh episodes
    (Stable-Baselines3 keeps no game's state): not bit for bit what it would have become.

    Args:
        run: folder of everything the run writes.
        game: what is played.
        eval_env: the game of evaluations; the same by default.
        steps: decisions in all.
        environments: copies of the game.
        policy: of Stable-Baselines3; None takes ``CnnPolicy`` for pictures and ``MlpPolicy`` for vectors.
        options: of its ``PPOTraining``, ``{n_steps: 128, ent_coef: 0.01}`` for example.
        evaluate_every: decisions from one evaluation to the next, at the first update from there on.
        evaluate_episodes: of one.
        greedy: in evaluations, do what is likeliest; False draws there too.
        video: write a video of every evaluation's first episode.
        seed: of everything random.
        device: ``auto`` takes a GPU where there is one.
        threads: of torch on the CPU; 0 leaves torch's choice.
    """

    def __init__(
        self,
        run: Path,
        game: EnvSpec,
        eval_env: EnvSpec | None = None,
        steps: int = 100_000,
        environments: int = 8,
        policy: str | None = None,
        options: dict[str, Any] | None = None,
        evaluate_every: int = 10_000,
        evaluate_episodes: int = 20,
        greedy: bool = True,
        video: bool = True,
        seed: int = 0,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        self.folder, self.game, self.eval_env = Path(run), game, eval_env or game
        self.steps, self.environments, self.policy, self.options = steps, environments, policy, options or {}
        self.evaluate_every, self.evaluate_episodes = evaluate_every, evaluate_episodes
        self.greedy, self.video, self.seed, self.device = greedy, video, seed, device
        if threads:
            torch.set_num_threads(threads)

    def run(self) -> None:
        """See ``TrainingRun.run``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        model = self.make()
        played = model.num_timesteps
        if played:
            print(f"going on from {RunFolder(self.folder).checkpoints / PPO_MODEL_FILE}, {played} decisions")
        if played < self.steps:
            self.learn(model)
        model.get_env().close()

    def learn(self, model: Any) -> None:
        """Play and learn from where the model stands; what was written after that is taken out of the tables."""
        played = model.num_timesteps
        names = ("episodes", "evaluations", "updates")
        tables = open_metric_tables(RunFolder(self.folder), names, played, self.runtime.loggers)
        random = evaluate_policy(None, self.eval_env, self.evaluate_episodes, self.seed + EVALUATION_SEED_OFFSET)
        watcher = _make_evaluation_callback(self, tables, float(random.returns.mean()))
        model.learn(self.steps - played, callback=watcher, progress_bar=False, reset_num_timesteps=False)

    def player(self, best: bool = False) -> PPOPolicy:
        """The policy as it was saved last, or as it did best. Raises FileNotFoundError where nothing was saved yet."""
        saved = RunFolder(self.folder).checkpoints / (PPO_BEST_MODEL_FILE if best else PPO_MODEL_FILE)
        if not saved.is_file():
            raise FileNotFoundError(f"{saved}: there is none; give the folder of a run of PPO that was evaluated")
        return PPOPolicy(_import_stable_baselines().PPO.load(saved, device="cpu"), self.greedy)

    def make(self) -> Any:
        """The model as it was saved last, or a fresh one.

        Raises:
            ImportError: Stable-Baselines3 is not installed.
            ValueError: the saved one is of another game.
        """
        sb3 = _import_stable_baselines()
        from vwm.worlds.stable_baselines import StableBaselinesVecEnv

        envs = StableBaselinesVecEnv(self.game.vector_env(self.environments, self.seed))
        saved = RunFolder(self.folder).checkpoints / PPO_MODEL_FILE
        if not saved.is_file():
            fitting = "CnnPolicy" if len(envs.observation_space.shape or ()) == 3 else "MlpPolicy"
            return sb3.PPO(self.policy or fitting, envs, seed=self.seed, device=self.device, **self.options)
        # The networks stay what they are; whatever else the options say may be changed on the way.
        options = {name: value for name, value in self.options.items() if name != "policy_kwargs"}
        model = sb3.PPO.load(saved, envs, device=self.device, **options)
        model.set_random_seed(self.seed + model.num_timesteps)  # or it would meet the same episodes once more
        return model

    def judge(self, model: Any, step: int, tables: dict[str, MetricTable], random: float) -> EvaluationResult:
        """Evaluate, and keep the model."""
        found = evaluate_and_log(self, PPOPolicy(model, self.greedy), "PPO", step, tables, random)
        for name in (
            (PPO_MODEL_FILE, PPO_BEST_MODEL_FILE)
            if is_best_evaluation(tables["evaluations"].rows())
            else (PPO_MODEL_FILE,)
        ):
            with atomic_write(RunFolder(self.folder).checkpoints / name) as file:
                model.save(file)
        return found


class PPOPolicy:
    """A trained model, acting; see ``Player``.

    Args:
        model: of Stable-Baselines3.
        greedy: without exploring, do what is likeliest; False draws there too.
    """

    def __init__(self, model: Any, greedy: bool = True) -> None:
        self.model, self.greedy = model, greedy

    @property
    def device(self) -> torch.device:
        """Stable-Baselines3 takes what lies on the CPU."""
        return torch.device("cpu")

    def init_carry(self, batch: int) -> PolicyCarry:
        """It remembers nothing."""
        return ()

    def act(self, carry: PolicyCarry, moment: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        chosen, _ = self.model.predict(moment.observation.numpy(), deterministic=self.greedy and not explore)
        action: Tensor = torch.as_tensor(chosen)
        return PolicyStep(action.clamp(-1, 1) if action.is_floating_point() else action, carry, {})


def _import_stable_baselines() -> Any:
    try:
        import stable_baselines3
    except ImportError as error:
        raise ImportError(
            f"PPO is Stable-Baselines3's, which is not installed ({error}): pip install 'vwm[sb3]'"
        ) from error
    return stable_baselines3


def _make_evaluation_callback(training: PPOTraining, tables: dict[str, MetricTable], random: float) -> Any:
    """What Stable-Baselines3 calls after every step."""
    from stable_baselines3.common.callbacks import BaseCallback
    from tqdm import tqdm

    class Watcher(BaseCallback):
        """Counts episodes, evaluates now and then."""

        def _on_training_start(self) -> None:
            self.returns = [0.0] * training.environments
            self.lengths = [0] * training.environments
            self.judged = self.model.num_timesteps
            self.bar = tqdm(total=training.steps, initial=self.judged, unit="decision", smoothing=0.05)

        def _on_rollout_start(self) -> None:
            if interval_crossed(self.judged, self.num_timesteps, training.evaluate_every):
                self._judge()

        def _on_step(self) -> bool:
            for copy, (reward, over) in enumerate(zip(self.locals["rewards"], self.locals["dones"], strict=True)):
                self.returns[copy] += float(reward)
                self.lengths[copy] += 1
                if over:
                    ended = {"return": self.returns[copy], "length": float(self.lengths[copy])}
                    tables["episodes"].add(self.num_timesteps, **ended)
                    self.returns[copy], self.lengths[copy] = 0.0, 0
            self.bar.update(training.environments)
            return True

        def _on_training_end(self) -> None:
            if self.num_timesteps > self.judged:
                self._judge()
            self.bar.close()

        def _judge(self) -> None:
            found = training.judge(self.model, self.num_timesteps, tables, random)
            self.bar.set_postfix_str(f"return {found.returns.mean():.1f}")
            self.judged = self.num_timesteps

    return Watcher()
