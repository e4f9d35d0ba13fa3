"""An agent whose policy learns in a video world that is itself learned from replay: IRIS's and DIAMOND's agents.

IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399) differ in their world, which is a module of any video family with
the loss that ``vwm fit`` uses. ``WorldLoop`` is the loop around it. World and policy may begin as an offline training
left them: Dreamer 4 (arXiv 2509.24527) goes on in the real environment.

Legend: b batch, t time, h steps of the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vwm.core.capabilities import ReconstructsFrames
from vwm.core.captured_steps import CaptureBackend
from vwm.core.checks import check_not_negative, check_positive
from vwm.core.family import ExportSettings
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.simulator import Simulator
from vwm.data.clips import ClipBatch
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.training_module import TrainingModule
from vwm.rl.agent import Agent, PolicyCarry, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.actor_critic_policy import ActorCriticPolicy
from vwm.rl.algorithms.imagined_rollout import (
    check_prior,
    imagination_losses,
    imagine_rollout,
    simulator_env_spaces,
)
from vwm.rl.algorithms.observed_world import ObservedWorld
from vwm.rl.algorithms.policy_objectives import PolicyObjective
from vwm.rl.exploration_noise import add_exploration_noise
from vwm.rl.optimizer_step import check_finite
from vwm.runs.checkpoints import mismatch_as_value_error, read_checkpoint
from vwm.runs.run_folder import RunFolder
from vwm.tokenizers.loading import given_tokenizer
from vwm.worlds.context_sampler import SimulatorContext
from vwm.worlds.families import find_family
from vwm.worlds.world_batch import OBSERVE_FRAME

POLICY_OPTIMIZER = OptimizerConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup=100)
PART_PAST_ENDS = "world"
"""The part whose clips run past the ends of episodes."""


@dataclass(frozen=True)
class LoopPart:
    """How a part of the agent learns: the tokenizer, the world, or the policy.

    Attributes:
        updates: of an epoch.
        first_updates: of the first epoch in which the part learns; None for as many as in the others.
        first_epoch: the first epoch in which it learns, counted from 1.
        batch_size: clips of an update; of the policy, rollouts.
        frames: of a clip; of the policy, frames of the context that a rollout starts from. A clip is of one episode;
            the world's run past its end, so that it learns ends at every place, and of episodes that are shorter.
        max_grad_norm: largest gradient norm of each network.

    Raises:
        ValueError: a value is out of range.
    """

    updates: int = 400
    first_updates: int | None = None
    first_epoch: int = 1
    batch_size: int = 32
    frames: int = 4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        check_positive(first_epoch=self.first_epoch, batch_size=self.batch_size, frames=self.frames)
        check_not_negative(updates=self.updates, first_updates=self.first_updates or 0)
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, got {self.max_grad_norm}")

    def updates_of(self, epoch: int) -> int:
        """Return the number of updates in an epoch, counted from 1."""
        if epoch < self.first_epoch:
            return 0
        return self.updates if epoch > self.first_epoch or self.first_updates is None else self.first_updates


class ImaginationAgent(Agent):
    """See the module; the defaults of the parts are DIAMOND's for Atari.

    The policy observes frames, in the environment the real ones, in the world the generated ones; or the world's state,
    which takes real frames in as if it had generated them. Rollouts start from replayed frames, which the policy's
    memory reads first.

    Args:
        spaces: of the environments.
        world: makes the module of the world; its loss must learn rewards and terminations, too.
        policy: makes the policy.
        objective: its losses.
        tokenizer: makes the module that trains the world's tokenizer; None where the world has none to train.
        world_part, policy_part, tokenizer_part: how each of them learns.
        policy_optimizer: of actor and critic.
        horizon: decisions of a rollout.
        discount: of rewards, per decision.
        exploration: fraction of random actions in training.
        observe: what the policy observes: ``"features"``, ``"latent"`` or ``"frame"``; see ``EncodedEnvSpec``.
        pretrained_policy: a run of ``ImaginationLearning``, of whose last checkpoint the policy takes the weights, the
            critic's too; it is also needed whenever this run is loaded. None starts as ``policy`` makes it.

    Raises:
        ValueError: world, policy and environment do not fit each other, or a value is out of range.
    """

    single_episode = True
    part_updates: Tensor

    def __init__(
        self,
        spaces: EnvSpaces,
        world: Callable[[], TrainingModule],
        policy: Callable[[Simulator, EnvSpaces], ActorCriticPolicy],
        objective: PolicyObjective,
        tokenizer: Callable[[], TrainingModule] | None = None,
        world_part: LoopPart = LoopPart(frames=6, first_updates=10_000),
        policy_part: LoopPart = LoopPart(frames=4, first_updates=5_000, max_grad_norm=100.0),
        tokenizer_part: LoopPart = LoopPart(frames=1),
        policy_optimizer: OptimizerConfig = POLICY_OPTIMIZER,
        horizon: int = 15,
        discount: float = 0.985,
        exploration: float = 0.01,
        observe: Literal["features", "latent", "frame"] = "frame",
        pretrained_policy: Path | None = None,
    ) -> None:
        super().__init__()
        check_positive(horizon=horizon)
        self._context_frames = policy_part.frames
        if not 0 < discount <= 1 or not 0 <= exploration <= 1:
            raise ValueError(f"discount={discount} and exploration={exploration} must lie in 0..1, discount above 0")
        self.spaces = spaces
        self.learners = nn.ModuleDict()
        self.parts: dict[str, LoopPart] = {}
        trained_tokenizer = None
        if tokenizer is not None:
            tokenizer_module = tokenizer()
            trained_tokenizer = tokenizer_module.tokenizer
            self._add_part("tokenizer", tokenizer_module, tokenizer_part)
        with given_tokenizer(trained_tokenizer):
            self._add_part("world", world(), world_part)
        # In a tuple, so that its networks are not registered a second time.
        self._simulators = (self.simulator(),)
        check_world_fits(self._simulators[0], spaces)
        self.observed = observe
        shows_frames_as_they_are = observe == OBSERVE_FRAME and not isinstance(self._simulators[0], ReconstructsFrames)
        self._memory = None if shows_frames_as_they_are else ObservedWorld(self._simulators[0], observe)
        shown = spaces if observe == OBSERVE_FRAME else simulator_env_spaces(self._simulators[0], observe)
        self._add_part("policy", policy(self._simulators[0], shown), policy_part)
        if pretrained_policy is not None:
            load_imagined_policy(pretrained_policy, self.policy)
        check_prior(self.policy, objective)
        self.objective = objective
        self.imagination_horizon = horizon
        self.discount = discount
        self.exploration = exploration
        self.batch_size = max(part.batch_size for part in self.parts.values())
        self.batch_length = 1 + max(part.frames for part in self.parts.values())
        self.register_buffer("part_updates", torch.zeros(len(self.parts), dtype=torch.int64))
        self._optimizer_configs = {
            name: learner.optimizer if isinstance(learner, TrainingModule) else policy_optimizer
            for name, learner in self.learners.items()
        }
        self._optimizers = {
            name: make_loop_optimizer(name, config, self.networks_of(name))
            for name, config in self._optimizer_configs.items()
        }

    @property
    def policy(self) -> ActorCriticPolicy:
        """The policy."""
        policy = self.learners["policy"]
        assert isinstance(policy, ActorCriticPolicy)
        return policy

    @property
    def world(self) -> TrainingModule:
        """The module of the world."""
        world = self.learners["world"]
        assert isinstance(world, TrainingModule)
        return world

    def networks_of(self, part: str) -> Mapping[str, nn.Module]:
        """Return the networks that a part trains, by name."""
        learner = self.learners[part]
        return learner.networks() if isinstance(learner, TrainingModule) else {part: learner}

    def simulator(self, title: str = "world", fps: float = 15.0) -> NetworkSimulator:
        """See ``Agent.simulator``: of the world's family."""
        settings = ExportSettings(title=title, fps=fps, context_frames=self._context_frames, starts=None, recording={})
        return find_family(self.world).make_simulator(self.world, settings)

    def accelerate(self, backend: CaptureBackend | None) -> None:
        """See ``Agent.accelerate``: the world's steps are captured, of which rollouts consist; updates are not."""
        self._simulators = (self._simulators[0].accelerate(backend),)
        if self._memory is not None:
            self._memory = ObservedWorld(self._simulators[0], self.observed)

    # ------------------------------------------------------------------------------------------------------ acting

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``: a ``WorldMemory``, empty where frames are seen as they are, and the policy's."""
        return () if self._memory is None else self._memory.init_memory(batch), self.policy.init_carry(batch)

    @torch.no_grad()
    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        self.eval()
        memory, policy_carry = carry
        shown = time_step.observation
        if self._memory is not None:
            memory, shown = self._memory.add(memory, time_step)
        step = self.policy.act(policy_carry, time_step._replace(observation=shown), explore)
        action = step.action
        if explore:
            action = add_exploration_noise(action, self.exploration, self.spaces.actions.size)
        return step._replace(action=action, carry=(self._remember(memory, action), step.carry))

    def observe(self, carry: PolicyCarry, time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``."""
        step = self.act(carry, time_step, explore=True)
        memory, policy_carry = step.carry
        return step._replace(action=action, carry=(self._remember(memory, action), policy_carry))

    def _remember(self, memory: PolicyCarry, action: Tensor) -> PolicyCarry:
        return memory if self._memory is None else memory._replace(action=action)

    # ---------------------------------------------------------------------------------------------------- learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``: one update of every part, of the batch's first sequences and their last time steps."""
        logs: dict[str, float] = {}
        for name, part in self.parts.items():
            fields: dict[str, Any] = {
                key: value[: part.batch_size, -1 - part.frames :]
                for key, value in batch._asdict().items()
                if isinstance(value, Tensor)
            }
            logs |= self.update_part(name, replayed_clips(batch._replace(**fields)))
        return UpdateOutput(logs)

    def update_part(self, name: str, clips: ClipBatch) -> dict[str, float]:
        """Make one update of a part.

        Args:
            name: of the part, a key of ``parts``.
            clips: of the part's ``frames``, with actions, rewards and terminations; see ``replayed_clips``.

        Returns:
            What to log.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; no weight was changed by it.
        """
        self.eval()
        loss, logs = self._policy_loss(clips) if name == "policy" else self._module_loss(name, clips)
        check_finite({**logs, f"loss of the {name}": loss})
        optimizer, index = self._optimizers[name], list(self.parts).index(name)
        rate = self._optimizer_configs[name]
        for group in optimizer.param_groups:
            group["lr"] = rate.lr * rate.factor(int(self.part_updates[index]), end=0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        bound = self.parts[name].max_grad_norm
        norms = {
            f"gradient_norm_{network}": nn.utils.clip_grad_norm_(weights.parameters(), bound)
            for network, weights in self.networks_of(name).items()
        }
        values = check_finite({**logs, **norms})
        optimizer.step()
        if name == "policy":
            self.policy.actor_critic.update_target()
        self.part_updates[index] += 1
        return values

    def _module_loss(self, name: str, clips: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the tokenizer's or the world's module, as in ``vwm fit``, and what to log."""
        module = self.learners[name]
        assert isinstance(module, TrainingModule)
        module.train()
        if not self.part_updates[list(self.parts).index(name)]:
            module.on_train_batch_start(clips, 0)  # a tokenizer initializes itself from the first batch
        loss, logs = module(clips)
        return loss, {f"{name}_loss": loss.detach(), **logs}

    def _policy_loss(self, clips: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of actor and critic from rollouts that start at the last frames of clips."""
        assert clips.actions is not None
        uniform = torch.ones(len(clips.frames), dtype=torch.bool)
        context = SimulatorContext(clips.frames, clips.actions[:, :-1], uniform)
        self.policy.update_prior(self._simulators[0])
        rollout = imagine_rollout(self._simulators[0], self.policy, context, self.imagination_horizon, self.observed)
        self.policy.train()
        losses = imagination_losses(self.policy, self.objective, rollout, self.discount)
        logs = {**losses.logs, "imagined_ends": rollout.terminated.any(0).float().mean()}
        return losses.actor_loss + losses.critic_loss, logs

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return self._optimizers

    def _add_part(self, name: str, learner: nn.Module, part: LoopPart) -> None:
        self.learners[name] = learner
        self.parts[name] = part


def make_loop_optimizer(part: str, config: OptimizerConfig, networks: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
    """Make the optimizer of a part's networks; its learning rate is set at every update.

    Raises:
        ValueError: the schedule needs an end, which a loop that goes on collecting does not have.
    """
    if config.schedule != "constant" or config.final_weight_decay is not None:
        raise ValueError(
            f"optimizer.schedule={config.schedule!r} and final_weight_decay={config.final_weight_decay} of the {part} "
            "end with the training, whose updates the loop does not know: set constant and null"
        )
    return config.build(nn.ModuleDict(networks), max_steps=0)[0]


def replayed_clips(batch: ReplayBatch) -> ClipBatch:
    """Return replayed sequences of t + 1 time steps within one episode as clips of t frames, as recordings have them.

    The reward and the end that an action led to arrive one time step later. Where a sequence repeats the time step of
    a termination, actions are 0, and rewards NaN, as after the end of a recorded episode.
    """
    action, ended = batch.action[:, :-1], batch.is_terminal[:, :-1]
    return ClipBatch(
        frames=batch.observation[:, :-1],
        actions=action.masked_fill(ended.view(*ended.shape, *[1] * (action.ndim - 2)), 0),
        rewards=batch.reward[:, 1:].masked_fill(ended, torch.nan),
        terminated=batch.is_terminal[:, 1:] & ~ended,
    )


def load_imagined_policy(run: Path, policy: ActorCriticPolicy) -> None:
    """Give a policy the weights that a run of ``ImaginationLearning`` saved last.

    Raises:
        FileNotFoundError: nothing was saved there yet.
        ValueError: the run's policy has other networks.
    """
    checkpoint = RunFolder(run).find_last_checkpoint()
    with mismatch_as_value_error(checkpoint, "policy"):
        policy.load_state_dict(read_checkpoint(checkpoint)["algorithm"]["policy"])


def check_world_fits(simulator: Simulator, spaces: EnvSpaces) -> None:
    """Raise ValueError unless a world takes the actions and shows the frames of environments, one frame a decision."""
    shown, taken = simulator.spec.observation, simulator.spec.actions.flat
    if shown.shape != spaces.observation.shape:
        raise ValueError(
            f"the environment shows observations of {list(spaces.observation.shape)}, the world {list(shown.shape)}: "
            "set the sizes of world (image_size) and environment (size) to the same"
        )
    if (taken.kind, taken.size) != (spaces.actions.kind, spaces.actions.size):
        raise ValueError(
            f"the environment takes {spaces.actions}, the world {taken}: set num_actions of the world's networks to "
            f"{spaces.actions.size}"
        )
    if simulator.spec.frames_per_step != 1:
        raise ValueError(
            f"a step of the world shows {simulator.spec.frames_per_step} frames, and a decision of the loop has one: "
            "take a tokenizer that does not compress time"
        )
