"""MuZero (arXiv 1911.08265) and EfficientZero (arXiv 2111.00210): act by tree search in a learned model.

They differ in settings: the search (``PUCTSearch``, or ``GumbelMuZeroSearch`` with few simulations), the value prefix,
the weight of the consistency loss, and how much is reanalyzed. Replay is sampled uniformly, without priorities, and
reanalysis uses the current networks (as in MuZero; EfficientZero keeps older ones for it). The default optimizer is
AdamW (the papers': ``{name: momentum, lr: 0.2}``).

Legend: b batch, t time, f stacked frames, u unrolled steps, a actions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vwm.core.captured_steps import Step
from vwm.core.checks import check_positive
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.muzero.network import MuZeroLatentState, MuZeroNetwork
from vwm.models.muzero.simulator import MuZeroSimulator
from vwm.nn.optimizer import OptimizerConfig
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.tree_search import TreeSearch, TreeSearchResult
from vwm.planning.tree_search_model import NodePrediction, TreeStep
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.muzero_targets import (
    MuZeroTargetConfig,
    MuZeroTargets,
    make_muzero_targets,
    value_prefix_targets,
)
from vwm.rl.frame_stacking import stack_frames
from vwm.rl.optimizer_step import backward_and_step, require_finite

LATENT_GRADIENT_SCALE = 0.5
"""Fraction of the gradient that passes from a latent to the one before it (MuZero, appendix G)."""


class MuZeroTreeModel:
    """The network as the model that a tree search expands.

    Args:
        network: the network.
        run_step: computes a step, see ``Agent.run_step``.
    """

    def __init__(
        self, network: MuZeroNetwork, run_step: Callable[[str, Step, Any, Any], tuple[Any, Any]] | None = None
    ) -> None:
        self.network = network
        self.run_step = run_step

    def predict(self, state: MuZeroLatentState) -> NodePrediction:
        """Predict policy and value; see ``TreeSearchModel.predict``."""
        policy, value = self.network.predict(state.latent)
        return NodePrediction(policy, self.network.value_support.mean(value))

    def step(self, state: MuZeroLatentState, action: Tensor) -> TreeStep:
        """See ``TreeSearchModel.step``; the network does not predict terminations."""
        if self.run_step is None:
            state, (reward, prediction) = self._expand(state, action)
        else:
            state, (reward, prediction) = self.run_step("expand", self._expand, state, action)
        return TreeStep(state, reward, torch.zeros_like(reward, dtype=torch.bool), prediction)

    def _expand(
        self, state: MuZeroLatentState, action: Tensor
    ) -> tuple[MuZeroLatentState, tuple[Tensor, NodePrediction]]:
        state, reward, _ = self.network.step(state, action)
        return state, (reward, self.predict(state))


@dataclass(frozen=True)
class MuZeroNetworkConfig:
    """Sizes of the network.

    Attributes:
        num_stacked_frames, width, num_blocks, hidden, support_limit, value_prefix_horizon, prefix_hidden,
            projection_size: see ``MuZeroNetwork``.

    Raises:
        ValueError: a size is out of range.
    """

    num_stacked_frames: int = 1
    width: int = 64
    num_blocks: int = 1
    hidden: int = 64
    support_limit: int = 300
    value_prefix_horizon: int = 5
    prefix_hidden: int = 64
    projection_size: int = 128

    def __post_init__(self) -> None:
        check_positive(**{name: size for name, size in vars(self).items() if name != "value_prefix_horizon"})
        if self.value_prefix_horizon < 0:
            raise ValueError(
                f"value_prefix_horizon must be 0 (no value prefix) or more, got {self.value_prefix_horizon}"
            )


@dataclass(frozen=True)
class MuZeroLossWeights:
    """Weights of the losses; the defaults are EfficientZero's.

    Attributes:
        policy, value, reward: of MuZero's losses.
        consistency: of EfficientZero's consistency loss; 0 omits it.

    Raises:
        ValueError: a weight is negative.
    """

    policy: float = 1.0
    value: float = 0.25
    reward: float = 1.0
    consistency: float = 2.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if weight < 0:
                raise ValueError(f"the loss weight {name} must be 0 or more, got {weight}")


@dataclass(frozen=True)
class MuZeroTemperatureSchedule:
    """Temperature of the decisions in training, constant between milestones.

    Attributes:
        temperatures: one after another.
        milestones: fractions of all updates after which the next temperature applies.

    Raises:
        ValueError: a temperature is not above 0, their number is wrong, or the milestones do not rise.
    """

    temperatures: tuple[float, ...] = (1.0, 0.5, 0.25)
    milestones: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        if len(self.temperatures) != len(self.milestones) + 1 or min(self.temperatures) <= 0:
            raise ValueError(
                "temperatures must be above 0 and one more than milestones, got temperatures "
                f"{list(self.temperatures)} and milestones {list(self.milestones)}"
            )
        if sorted(self.milestones) != list(self.milestones):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")

    def temperature(self, updates: int, total_updates: int) -> float:
        """Return the temperature after a number of updates; the first one while the total is 0 (unknown)."""
        if not total_updates:
            return self.temperatures[0]
        return self.temperatures[sum(updates >= milestone * total_updates for milestone in self.milestones)]


class MuZeroAgent(Agent):
    """See the module. Replay stores the search policy and the root's value with every time step.

    Args:
        spaces: of the environments; actions must be discrete.
        search: the tree search.
        network, targets, loss_weights, temperature_schedule: see their classes.
        optimizer: of the network.
        max_grad_norm: largest gradient norm.
        batch_size: sequences of an update.

    Raises:
        ValueError: continuous actions, or a setting that is out of range.
    """

    updates: Tensor

    def __init__(
        self,
        spaces: EnvSpaces,
        search: TreeSearch | None = None,
        network: MuZeroNetworkConfig = MuZeroNetworkConfig(),
        targets: MuZeroTargetConfig = MuZeroTargetConfig(),
        loss_weights: MuZeroLossWeights = MuZeroLossWeights(),
        temperature_schedule: MuZeroTemperatureSchedule = MuZeroTemperatureSchedule(),
        optimizer: OptimizerConfig = OptimizerConfig(name="adamw", lr=1e-3, betas=(0.9, 0.999), warmup=0),  # noqa: B008
        max_grad_norm: float = 5.0,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        if spaces.actions.kind != "discrete":
            raise ValueError(
                f"MuZero requires discrete actions, and these are {spaces.actions.kind}: use TD-MPC2 or DreamerV3, or "
                "GymnasiumEnvSpec's enumerate_actions=true for composite actions of choices and keys"
            )
        if optimizer.final_weight_decay is not None:
            raise ValueError(
                f"optimizer.final_weight_decay must be null, got {optimizer.final_weight_decay}: MuZero schedules only "
                "the learning rate"
            )
        self.spaces = spaces
        self.search = PUCTSearch() if search is None else search
        self.network = MuZeroNetwork(list(spaces.observation.shape), spaces.actions.size, **asdict(network))
        self.target_config = targets
        self.loss_weights = loss_weights
        self.temperature_schedule = temperature_schedule
        self.optimizer_config = optimizer
        self.optimizer, _ = optimizer.build(self.network, max_steps=1)
        self.max_grad_norm = max_grad_norm
        self.num_stacked_frames = network.num_stacked_frames
        self.batch_size = batch_size
        self.batch_length = network.num_stacked_frames + targets.unroll_steps + targets.td_steps
        self.imagination_horizon = targets.unroll_steps
        self.extras = {"policy": ((spaces.actions.size,), torch.float32), "value": ((), torch.float32)}
        self.register_buffer("updates", torch.zeros(2, dtype=torch.int64))
        """Updates done, and the total of the run (0: unknown)."""

    def set_total_updates(self, updates: int) -> None:
        """See ``Agent.set_total_updates``."""
        self.updates[1] = updates

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"network": self.optimizer}

    def simulator(self, title: str = "world", fps: float = 15.0) -> MuZeroSimulator:
        """See ``Agent.simulator``."""
        return MuZeroSimulator(self.network, actions=self.spaces.actions, title=title, fps=fps)

    @property
    def temperature(self) -> float:
        """Current temperature of decisions in training."""
        return self.temperature_schedule.temperature(*self.updates.tolist())

    # ------------------------------------------------------------------------------------------------------- acting

    def init_carry(self, batch: int) -> Tensor:
        """See ``Agent.init_carry``: the f - 1 observations before the current one."""
        space = self.spaces.observation
        shape = (batch, self.num_stacked_frames - 1, *space.shape)
        return torch.zeros(shape, dtype=space.dtype, device=self.device)

    @torch.no_grad()
    def act(self, carry: Tensor, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        observation = time_step.observation[:, None]
        is_first = time_step.is_first.view(-1, *[1] * (observation.ndim - 1))
        window = torch.cat((torch.where(is_first, observation, carry), observation), dim=1)
        result = self.run_search(window, self.temperature if explore else 0.0)
        return PolicyStep(result.action, window[:, 1:], {"policy": result.policy, "value": result.value})

    def run_search(self, windows: Tensor, temperature: float) -> TreeSearchResult:
        """Search from stacked observations [b, f, ...]."""
        seeds = torch.randint(2**62, (len(windows),))
        state, tree_model = self.network.represent(windows), MuZeroTreeModel(self.network, self.run_step)
        return self.search.search(tree_model, state, self.target_config.discount, seeds, temperature)

    # ----------------------------------------------------------------------------------------------------- learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``; searching again and the learning rate's schedule are not part of what is captured."""
        root = self.num_stacked_frames - 1  # index of the root's time step in the sequences
        num_reanalyzed = math.ceil(self.target_config.reanalyze_fraction * len(batch.observation))
        extras: dict[str, Tensor] = {}
        if num_reanalyzed:
            observation, is_first = batch.observation[:num_reanalyzed], batch.is_first[:num_reanalyzed]
            extras = self._reanalyze(stack_frames(observation, is_first, self.num_stacked_frames))
        updated = {
            name: torch.cat((extras[name], batch.extras[name][num_reanalyzed:, root:]))
            if num_reanalyzed
            else batch.extras[name][:, root:]
            for name in ("policy", "value")
        }
        self._set_learning_rate()
        learn = functools.partial(self.learn, num_reanalyzed=num_reanalyzed)
        values, _ = self.run_update("update", learn, batch._replace(extras=updated))
        return UpdateOutput(values, extras, batch.indices[:num_reanalyzed, root:] if num_reanalyzed else None)

    def learn(self, batch: ReplayBatch, num_reanalyzed: int) -> tuple[dict[str, Tensor], None]:
        """Update the network once; see ``Agent.run_update``.

        Args:
            batch: its extras begin at the roots' time steps; those of its first sequences are searched again.
            num_reanalyzed: number of these sequences.

        Returns:
            What to log.
        """
        windows = stack_frames(batch.observation, batch.is_first, self.num_stacked_frames)
        root, value = self.num_stacked_frames - 1, batch.extras["value"]
        if self.target_config.bootstrap_from_network:
            value = torch.cat((value[:num_reanalyzed], self._predict_values(windows[num_reanalyzed:])))
        targets = make_muzero_targets(
            batch.reward[:, root:],
            batch.is_first[:, root:],
            batch.is_last[:, root:],
            batch.is_terminal[:, root:],
            batch.extras["policy"],
            value,
            self.target_config,
        )
        loss, logs = self.loss(windows, batch.action[:, root : root + self.target_config.unroll_steps], targets)
        require_finite(logs)
        backward_and_step(loss, self.optimizer, self.max_grad_norm, self.network.parameters())
        self.updates[:1] += 1
        return logs, None

    def loss(self, windows: Tensor, action: Tensor, targets: MuZeroTargets) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of sequences, and its parts.

        Args:
            windows: stacked observations of the root and of the time steps after it, [b, u + 1 or more, f, ...].
            action: int64 [b, u].
            targets: see ``make_muzero_targets``.
        """
        network, u = self.network, self.target_config.unroll_steps
        action = torch.where(targets.action_valid, action, torch.randint_like(action, network.num_actions))
        reward = (
            value_prefix_targets(targets.reward, network.value_prefix_horizon)
            if network.value_prefix_horizon
            else targets.reward
        )
        state = network.represent(windows[:, 0])
        reward_logits, latents = [], [state.latent]
        for step in range(u):
            state, _, logits = network.step(state._replace(latent=scale_latent_gradient(state.latent)), action[:, step])
            reward_logits.append(logits)
            latents.append(state.latent)
        predicted = torch.stack(latents, 1)
        policy, value = (logits.unflatten(0, (-1, u + 1)) for logits in network.predict(predicted.flatten(0, 1)))
        # All unrolled steps together weigh as much as the root.
        step_weights = torch.full((u + 1,), 1 / u, device=action.device)
        step_weights[0] = 1.0
        cross_entropy = -(targets.policy * policy.log_softmax(-1)).sum(-1)
        value_loss = network.value_support.loss(value, targets.value)
        reward_loss = network.value_support.loss(torch.stack(reward_logits, 1), reward)
        losses = {
            "policy": cross_entropy * targets.policy_mask * step_weights,
            "value": value_loss * targets.value_mask * step_weights,
            "reward": reward_loss * targets.reward_mask / u,
        }
        if self.loss_weights.consistency:
            observed = targets.observation_mask > 0
            losses["consistency"] = self._consistency_loss(predicted[:, 1:], windows[:, 1 : u + 1], observed) / u
        means = {name: values.sum(1).mean() for name, values in losses.items()}
        loss = torch.stack([getattr(self.loss_weights, name) * mean for name, mean in means.items()]).sum()
        logs = {f"loss_{name}": mean.detach() for name, mean in means.items()}
        return loss, {"loss": loss.detach(), **logs, "root_value": targets.value[:, 0].mean()}

    def _consistency_loss(self, predicted: Tensor, windows: Tensor, observed: Tensor) -> Tensor:
        """Compare predicted latents with the encoded observations.

        Args:
            predicted: latents [b, u, ...].
            windows: [b, u, f, ...], stacked observations of the same time steps.
            observed: bool [b, u], whether these are of the same episode.

        Returns:
            Losses [b, u], 0 where not observed.
        """
        with torch.no_grad():
            target = self.network.represent(windows.flatten(0, 1)).latent
        losses = self.network.consistency_loss(predicted.flatten(0, 1), target, observed.flatten())
        counts = observed & (observed.sum() >= 2)  # fewer are too few for the batch norm of the projections
        return losses.view(observed.shape).masked_fill(~counts, 0)

    def _set_learning_rate(self) -> None:
        """Follow the schedule; a captured update reads the learning rate from the device."""
        config = self.optimizer_config
        updates, total_updates = self.updates.tolist()
        rate = config.lr * config.factor(updates, config.stretch * max(total_updates, 1))
        for group in self.optimizer.param_groups:
            current = group["lr"]
            if self.captured_updates is None:
                group["lr"] = float(np.float32(rate))  # as exact as it is on the device
            elif isinstance(current, Tensor) and current.device == self.device:
                current.fill_(rate)
            else:
                group["lr"] = torch.tensor(rate, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def _predict_values(self, windows: Tensor) -> Tensor:
        """Return the network's values of stacked observations [b, t, f, ...] without a search: [b, t]."""
        latent = self.network.represent(windows.flatten(0, 1)).latent
        return self.network.value_support.mean(self.network.predict(latent).value_logits).view(windows.shape[:2])

    @torch.no_grad()
    def _reanalyze(self, windows: Tensor) -> dict[str, Tensor]:
        """Search from stacked observations [b, t, f, ...] again; return policies [b, t, a] and values [b, t]."""
        result = self.run_search(windows.flatten(0, 1), temperature=0.0)
        return {"policy": result.policy.unflatten(0, windows.shape[:2]), "value": result.value.view(windows.shape[:2])}


def scale_latent_gradient(x: Tensor) -> Tensor:
    """Return the same values, with ``LATENT_GRADIENT_SCALE`` times their gradient."""
    return LATENT_GRADIENT_SCALE * x + (1 - LATENT_GRADIENT_SCALE) * x.detach()
