"""MuZero (arXiv 1911.08265) and EfficientZero (arXiv 2111.00210): act by tree search in a learned model.

They differ in settings. EfficientZero has the value prefix, the consistency loss on shifted images, replay by
priorities, fewer steps of returns for older data, and searches again with a target network; its later version and small
machines take Gumbel MuZero's search. Each is an option of its own, see ``configs/agents/efficientzero_*.yaml``. The
default optimizer is AdamW (the papers': ``{name: momentum, lr: 0.2}``).

Legend: b batch, t time, f stacked frames, u unrolled steps, a actions.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vwm.core.captured_steps import Step
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.muzero.network import MuZeroLatentState, MuZeroNetwork
from vwm.models.muzero.simulator import MuZeroSimulator
from vwm.nn.optimizer import OptimizerConfig
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.tree_search import TreeSearch, TreeSearchResult
from vwm.planning.tree_search_model import NodePrediction, TreeStep
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.muzero_config import (
    MuZeroAugmentation,
    MuZeroLossWeights,
    MuZeroNetworkConfig,
    MuZeroTemperatureSchedule,
)
from vwm.rl.algorithms.muzero_targets import (
    MuZeroTargetConfig,
    MuZeroTargets,
    corrected_td_steps,
    make_muzero_targets,
    value_prefix_targets,
)
from vwm.rl.frame_stacking import stack_frames
from vwm.rl.optimizer_step import backward_and_step, require_finite
from vwm.rl.replay_priorities import ReplayPriorities

LATENT_GRADIENT_SCALE = 0.5
"""Fraction of the gradient that passes from a latent to the one before it (MuZero, appendix G)."""


class MuZeroTreeModel:
    """The network as the model that a tree search expands.

    Args:
        network: the network.
        run_step: computes a step, see ``Agent.run_step``.
        name: of the step there.
    """

    def __init__(
        self,
        network: MuZeroNetwork,
        run_step: Callable[[str, Step, Any, Any], tuple[Any, Any]] | None = None,
        name: str = "expand",
    ) -> None:
        self.network = network
        self.run_step = run_step
        self.name = name

    def predict(self, state: MuZeroLatentState) -> NodePrediction:
        """Predict policy and value; see ``TreeSearchModel.predict``."""
        policy, value = self.network.predict(state.latent)
        return NodePrediction(policy, self.network.value_support.mean(value))

    def step(self, state: MuZeroLatentState, action: Tensor) -> TreeStep:
        """See ``TreeSearchModel.step``; the network does not predict terminations."""
        if self.run_step is None:
            state, (reward, prediction) = self._expand(state, action)
        else:
            state, (reward, prediction) = self.run_step(self.name, self._expand, state, action)
        return TreeStep(state, reward, torch.zeros_like(reward, dtype=torch.bool), prediction)

    def _expand(
        self, state: MuZeroLatentState, action: Tensor
    ) -> tuple[MuZeroLatentState, tuple[Tensor, NodePrediction]]:
        state, reward, _ = self.network.step(state, action)
        return state, (reward, self.predict(state))


class MuZeroAgent(Agent):
    """See the module. Replay stores the search policy and the root's value with every time step.

    Args:
        spaces: of the environments; actions must be discrete.
        search: the tree search.
        network, targets, loss_weights, temperature_schedule: see their classes.
        optimizer: of the network.
        max_grad_norm: largest gradient norm.
        batch_size: sequences of an update.
        priorities: draws sequences by the error of their root's value; None draws them uniformly.
        augmentation: of images that are learned from.

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
        priorities: ReplayPriorities | None = None,
        augmentation: MuZeroAugmentation = MuZeroAugmentation(),
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
        self.target_network = copy.deepcopy(self.network).requires_grad_(False) if targets.target_interval else None
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
        self.root_step = network.num_stacked_frames - 1
        self.priorities = priorities
        self.augment = augmentation
        self.extras = {"policy": ((spaces.actions.size,), torch.float32), "value": ((), torch.float32)}
        if targets.staleness_fraction:
            self.extras["collected"] = ((), torch.int64)
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
        extras = {"policy": result.policy, "value": result.value}
        if "collected" in self.extras:
            extras["collected"] = self.updates[0].expand(len(observation))
        return PolicyStep(result.action, window[:, 1:], extras)

    def run_search(self, windows: Tensor, temperature: float, target: bool = False) -> TreeSearchResult:
        """Search from stacked observations [b, f, ...] with the network, or with the one that makes targets."""
        seeds = torch.randint(2**62, (len(windows),))
        tree_model = MuZeroTreeModel(self.network, self.run_step)
        if target and self.target_network is not None:
            tree_model = MuZeroTreeModel(self.target_network, self.run_step, "expand target")
        state = tree_model.network.represent(windows)
        return self.search.search(tree_model, state, self.target_config.discount, seeds, temperature)

    # ----------------------------------------------------------------------------------------------------- learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``; searching again and the learning rate's schedule are not part of what is captured."""
        root, given = self.root_step, batch.extras
        num_reanalyzed = math.ceil(self.target_config.reanalyze_fraction * len(batch.observation))
        extras: dict[str, Tensor] = {}
        if num_reanalyzed:
            observation, is_first = batch.observation[:num_reanalyzed], batch.is_first[:num_reanalyzed]
            extras = self._reanalyze(stack_frames(observation, is_first, self.num_stacked_frames))
        updated = {
            name: torch.cat((extras[name], given[name][num_reanalyzed:, root:]))
            if name in extras
            else given[name][:, root:]
            for name in self.extras
        }
        if self.priorities is not None:
            updated["weight"] = self._importance_weights(self.priorities, given["relative_probability"])
        self._set_learning_rate()
        learn = functools.partial(self.learn, num_reanalyzed=num_reanalyzed)
        values, priorities = self.run_update("update", learn, batch._replace(extras=updated))
        self._update_target_network()
        indices = batch.indices[:num_reanalyzed, root:] if num_reanalyzed else None
        return UpdateOutput(values, extras, indices, priorities)

    def learn(self, batch: ReplayBatch, num_reanalyzed: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Update the network once; see ``Agent.run_update``.

        Args:
            batch: its extras begin at the roots' time steps; those of its first sequences are searched again.
            num_reanalyzed: number of these sequences.

        Returns:
            What to log, and the errors of the roots' values [b] as priorities, where these are used.
        """
        windows = stack_frames(batch.observation, batch.is_first, self.num_stacked_frames)
        root, config, value = self.root_step, self.target_config, batch.extras["value"]
        if self.target_config.bootstrap_from_network:
            value = torch.cat((value[:num_reanalyzed], self._predict_values(windows[num_reanalyzed:])))
        td_steps = None
        if config.staleness_fraction:
            td_steps = corrected_td_steps(batch.extras["collected"][:, : config.unroll_steps + 1], self.updates, config)
        targets = make_muzero_targets(
            batch.reward[:, root:].sign() if config.sign_rewards else batch.reward[:, root:],
            batch.is_first[:, root:],
            batch.is_last[:, root:],
            batch.is_terminal[:, root:],
            batch.extras["policy"],
            value,
            config,
            td_steps,
        )
        action, weight = batch.action[:, root : root + config.unroll_steps], batch.extras.get("weight")
        loss, logs, priorities = self.loss(windows, action, targets, weight)
        if td_steps is not None:
            logs["td_steps"] = td_steps.double().mean()
        require_finite(logs)
        backward_and_step(loss, self.optimizer, self.max_grad_norm, self.network.parameters())
        self.updates[:1] += 1
        return logs, None if self.priorities is None else priorities

    def loss(
        self, windows: Tensor, action: Tensor, targets: MuZeroTargets, weight: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute the loss of sequences, its parts, and the absolute errors of the roots' values [b].

        Args:
            windows: stacked observations of the root and of the time steps after it, [b, u + 1 or more, f, ...].
            action: int64 [b, u].
            targets: see ``make_muzero_targets``.
            weight: [b], of the sequences in the loss; None for 1.
        """
        network, u = self.network, self.target_config.unroll_steps
        action = torch.where(targets.action_valid, action, torch.randint_like(action, network.num_actions))
        reward = (
            value_prefix_targets(targets.reward, network.value_prefix_horizon)
            if network.value_prefix_horizon
            else targets.reward
        )
        state = network.represent(self.augment(windows[:, 0]))
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
        per_sequence = {name: values.sum(1) for name, values in losses.items()}
        means = {name: (x if weight is None else weight * x).mean() for name, x in per_sequence.items()}
        loss = torch.stack([getattr(self.loss_weights, name) * mean for name, mean in means.items()]).sum()
        logs = {f"loss_{name}": mean.detach() for name, mean in means.items()}
        error = (network.value_support.mean(value[:, 0].detach()) - targets.value[:, 0]).abs()
        return loss, {"loss": loss.detach(), **logs, "root_value": targets.value[:, 0].mean()}, error

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
            target = self.network.represent(self.augment(windows.flatten(0, 1))).latent
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

    def _importance_weights(self, priorities: ReplayPriorities, relative_probability: Tensor) -> Tensor:
        """Return the weights [b] that undo the bias of the drawing, the largest of which is 1."""
        weight = relative_probability ** -priorities.correction_at(*self.updates.tolist())
        return weight / weight.max()

    def _update_target_network(self) -> None:
        """Copy the network to the target network after every interval of updates."""
        if self.target_network is not None and int(self.updates[0]) % self.target_config.target_interval == 0:
            self.target_network.load_state_dict(self.network.state_dict())

    @torch.no_grad()
    def _predict_values(self, windows: Tensor) -> Tensor:
        """Return values for targets of stacked observations [b, t, f, ...] without a search: [b, t]."""
        network = self.network if self.target_network is None else self.target_network
        latent = network.represent(windows.flatten(0, 1)).latent
        return network.value_support.mean(network.predict(latent).value_logits).view(windows.shape[:2])

    @torch.no_grad()
    def _reanalyze(self, windows: Tensor) -> dict[str, Tensor]:
        """Search from stacked observations [b, t, f, ...] again; return policies [b, t, a] and values [b, t]."""
        result = self.run_search(windows.flatten(0, 1), temperature=0.0, target=True)
        return {"policy": result.policy.unflatten(0, windows.shape[:2]), "value": result.value.view(windows.shape[:2])}


def scale_latent_gradient(x: Tensor) -> Tensor:
    """Return the same values, with ``LATENT_GRADIENT_SCALE`` times their gradient."""
    return LATENT_GRADIENT_SCALE * x + (1 - LATENT_GRADIENT_SCALE) * x.detach()
