"""MuZero (arXiv 1911.08265) and EfficientZero (arXiv 2111.00210): act by tree search in a learned model.

They differ in settings: the search (``PUCTSearch``, or ``GumbelMuZeroSearch`` with few simulations), the value prefix,
the weight of the consistency loss, and how much is reanalyzed. Replay is sampled uniformly, without priorities, and
reanalysis uses the current networks (as in MuZero; EfficientZero keeps older ones for it). The default optimizer is
AdamW (the papers': ``{name: momentum, lr: 0.2}``).

Legend: b batch, t time, f stacked frames, u unrolled steps, a actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.muzero.network import MuZeroLatentState
from vwm.models.muzero.network import MuZeroNetwork as Network
from vwm.nn.optimizer import OptimizerConfig
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.tree_search import TreeSearch, TreeSearchResult
from vwm.planning.tree_search_model import NodePrediction, TreeStep
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.muzero_targets import MuZeroTargets, make_muzero_targets, value_prefix_targets
from vwm.rl.frame_stacking import stack_frames
from vwm.rl.optimizer_step import backward_and_step, check_finite

LATENT_GRADIENT_SCALE = 0.5
"""Fraction of the gradient that passes from a latent to the one before it (MuZero, appendix G)."""


class MuZeroTreeModel:
    """The network as the model that a tree search expands."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def predict(self, state: MuZeroLatentState) -> NodePrediction:
        """Predict policy and value; see ``TreeSearchModel.predict``."""
        policy, value = self.network.predict(state.latent)
        return NodePrediction(policy, self.network.value_support.mean(value))

    def step(self, state: MuZeroLatentState, action: Tensor) -> TreeStep:
        """See ``TreeModel``; the model predicts no ends of episodes."""
        state, reward, _ = self.network.step(state, action)
        return TreeStep(state, reward, torch.zeros_like(reward, dtype=torch.bool), self.predict(state))


class MuZeroAgent(Agent):
    """See the module. Replay stores the search policy and the root's value with every time step.

    Args:
        spaces: of the environments; actions must be discrete.
        search: the tree search.
        frames, width, blocks, hidden, support, value_prefix, prefix_hidden, projection: see
            ``vwm.models.muzero.network.MuZeroNetwork``.
        optimizer: of the network.
        clip: largest gradient norm.
        batch_size: sequences of an update.
        unroll: u, steps of the model that are trained together.
        td: rewards added up before bootstrapping from a root's value.
        discount: per step.
        value_weight, consistency_weight: of these losses; policy and reward have weight 1.
        bootstrap_from_network: bootstrap from the current network's values instead of the roots' values at the time of
            acting, which come from older networks.
        reanalyse: fraction of the sequences whose policies and values are searched again with the current network.
        temperatures: of decisions in training, one after another.
        cooling: fractions of all updates after which the next temperature applies.

    Raises:
        ValueError: continuous actions, or a setting that is out of range.
    """

    updates: Tensor

    def __init__(
        self,
        spaces: EnvSpaces,
        search: TreeSearch | None = None,
        frames: int = 1,
        width: int = 64,
        blocks: int = 1,
        hidden: int = 64,
        support: int = 300,
        value_prefix: int = 5,
        prefix_hidden: int = 64,
        projection: int = 128,
        optimizer: OptimizerConfig = OptimizerConfig(name="adamw", lr=1e-3, betas=(0.9, 0.999), warmup=0),  # noqa: B008
        clip: float = 5.0,
        batch_size: int = 128,
        unroll: int = 5,
        td: int = 5,
        discount: float = 0.997,
        value_weight: float = 0.25,
        consistency_weight: float = 2.0,
        bootstrap_from_network: bool = False,
        reanalyse: float = 0.0,
        temperatures: tuple[float, ...] = (1.0, 0.5, 0.25),
        cooling: tuple[float, ...] = (0.5, 0.75),
    ) -> None:
        super().__init__()
        if spaces.actions.kind != "discrete":
            raise ValueError(f"MuZero needs discrete actions, and these are {spaces.actions.kind}")
        if unroll < 1 or td < 1 or not 0 <= reanalyse <= 1:
            raise ValueError(
                f"unroll and td must be 1 or more and reanalyse lie in 0..1, got {unroll}, {td} and {reanalyse}"
            )
        if len(temperatures) != len(cooling) + 1 or sorted(cooling) != list(cooling) or min(temperatures) <= 0:
            raise ValueError(
                f"temperatures must be above 0 and one more than cooling, which must rise, got {temperatures} and "
                f"{cooling}"
            )
        if optimizer.final_weight_decay is not None:
            raise ValueError("MuZero schedules the learning rate alone: leave optimizer.final_weight_decay unset")
        self.spaces = spaces
        self.search = PUCTSearch() if search is None else search
        actions = spaces.actions.size
        self.network = Network(
            list(spaces.observation.shape),
            actions,
            frames,
            width,
            blocks,
            hidden,
            support,
            value_prefix,
            prefix_hidden,
            projection,
        )
        self.settings = optimizer
        self.optimizer, _ = optimizer.build(self.network, max_steps=1)
        self.clip = clip
        self.discount = discount
        self.unroll = unroll
        self.td = td
        self.value_weight = value_weight
        self.consistency_weight = consistency_weight
        self.bootstrap_from_network = bootstrap_from_network
        self.reanalyse = reanalyse
        self.temperatures = tuple(temperatures)
        self.cooling = tuple(cooling)
        self.frames = frames
        self.batch_size = batch_size
        self.batch_length = frames + unroll + td
        self.extras = {"policy": ((actions,), torch.float32), "value": ((), torch.float32)}
        self.register_buffer("updates", torch.zeros(2, dtype=torch.int64))
        """Done, and to be done in the whole run."""

    def set_total_updates(self, updates: int) -> None:
        """See ``Agent.set_total_updates``."""
        self.updates[1] = updates

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"network": self.optimizer}

    @property
    def temperature(self) -> float:
        """Current temperature of decisions in training."""
        done, all_ = self.updates.tolist()
        return self.temperatures[sum(done >= share * all_ for share in self.cooling) if all_ else 0]

    # ------------------------------------------------------------------------------------------------------- acting

    def init_carry(self, batch: int) -> Tensor:
        """See ``Agent.init_carry``: the f - 1 observations before the current one."""
        return torch.zeros(
            batch,
            self.frames - 1,
            *self.spaces.observation.shape,
            dtype=self.spaces.observation.dtype,
            device=self.device,
        )

    @torch.no_grad()
    def act(self, carry: Tensor, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        now = time_step.observation[:, None]
        fresh = time_step.is_first.view(-1, *[1] * (now.ndim - 1))
        seen = torch.cat((torch.where(fresh, now, carry), now), dim=1)
        found = self.look(seen, self.temperature if explore else 0.0)
        return PolicyStep(found.action, seen[:, 1:], {"policy": found.policy, "value": found.value})

    def look(self, seen: Tensor, temperature: float) -> TreeSearchResult:
        """Search from observations [b, f, ...]."""
        seeds = torch.randint(2**62, (len(seen),))
        state = self.network.represent(seen)
        return self.search.search(MuZeroTreeModel(self.network), state, self.discount, seeds, temperature)

    # ----------------------------------------------------------------------------------------------------- learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        seen = stack_frames(batch.observation, batch.is_first, self.frames)
        now = self.frames - 1  # where the pieces' roots are
        renewed = math.ceil(self.reanalyse * len(seen))
        extras = self._reanalyse(seen[:renewed]) if renewed else {}
        policy, value = batch.extras["policy"][:, now:], batch.extras["value"][:, now:]
        if renewed:
            policy = torch.cat((extras["policy"], policy[renewed:]))
            value = torch.cat((extras["value"], value[renewed:]))
        if self.bootstrap_from_network:
            value = torch.cat((value[:renewed], self._values(seen[renewed:])))
        wanted = make_muzero_targets(
            batch.reward[:, now:],
            batch.is_first[:, now:],
            batch.is_last[:, now:],
            batch.is_terminal[:, now:],
            policy,
            value,
            self.unroll,
            self.td,
            self.discount,
        )
        loss, logs = self.loss(seen, batch.action[:, now : now + self.unroll], wanted)
        numbers = check_finite(logs)
        self._descend(loss)
        return UpdateOutput(numbers, extras, batch.indices[:renewed, now:] if renewed else None)

    def loss(self, seen: Tensor, action: Tensor, wanted: MuZeroTargets) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of sequences, and its parts.

        Args:
            seen: stacked observations of the root and of the time steps after it, [b, u + 1 or more, f, ...].
            action: int64 [b, u].
            wanted: see ``make_muzero_targets``.
        """
        network, u = self.network, self.unroll
        action = torch.where(wanted.acted, action, torch.randint_like(action, network.num_actions))
        reward = (
            value_prefix_targets(wanted.reward, network.value_prefix_horizon)
            if network.value_prefix_horizon
            else wanted.reward
        )
        state = network.represent(seen[:, 0])
        rewards, latents = [], [state.latent]
        for step in range(u):
            state, _, logits = network.step(state._replace(latent=scale_latent_gradient(state.latent)), action[:, step])
            rewards.append(logits)
            latents.append(state.latent)
        predicted = torch.stack(latents, 1)
        policy, value = (said.unflatten(0, (-1, u + 1)) for said in network.predict(predicted.flatten(0, 1)))
        weight = torch.tensor([1.0, *[1 / u] * u], device=action.device)  # all steps together weigh what the root does
        cross = -(wanted.policy * policy.log_softmax(-1)).sum(-1)
        parts = {
            "policy": cross * wanted.policy_mask * weight,
            "value": network.value_support.loss(value, wanted.value) * wanted.value_mask * weight,
            "reward": network.value_support.loss(torch.stack(rewards, 1), reward) * wanted.reward_mask / u,
        }
        weights = {"policy": 1.0, "value": self.value_weight, "reward": 1.0}
        if self.consistency_weight:
            there = self._disagreement(predicted[:, 1:], seen[:, 1 : u + 1], wanted.observed > 0)
            parts["consistency"], weights["consistency"] = there / u, self.consistency_weight
        means = {name: part.sum(1).mean() for name, part in parts.items()}
        loss = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
        logs = {f"loss_{name}": mean.detach() for name, mean in means.items()}
        return loss, {"loss": loss.detach(), **logs, "root_value": wanted.value[:, 0].mean()}

    def _disagreement(self, predicted: Tensor, seen: Tensor, real: Tensor) -> Tensor:
        """Of latents [b, u, ...] with what was observed there, where that is of the same episode; [b, u]."""
        nothing = torch.zeros(real.shape, device=real.device)
        if int(real.sum()) < 2:  # too few to be normalized by their batch
            return nothing
        with torch.no_grad():
            observed = self.network.represent(seen[real]).latent
        return nothing.masked_scatter(real, self.network.consistency_loss(predicted[real], observed))

    def _descend(self, loss: Tensor) -> None:
        done, all_ = self.updates.tolist()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.factor(done, self.settings.stretch * max(all_, 1))
        backward_and_step(loss, self.optimizer, self.clip, self.network.parameters())
        self.updates[0] += 1

    @torch.no_grad()
    def _values(self, seen: Tensor) -> Tensor:
        """Return the network's values of time steps [b, t, f, ...] without a search: [b, t]."""
        latent = self.network.represent(seen.flatten(0, 1)).latent
        return self.network.value_support.mean(self.network.predict(latent).value_logits).view(seen.shape[:2])

    @torch.no_grad()
    def _reanalyse(self, seen: Tensor) -> dict[str, Tensor]:
        """Search time steps [b, t, f, ...] again; return policies [b, t, a] and values [b, t]."""
        found = self.look(seen.flatten(0, 1), temperature=0.0)
        return {"policy": found.policy.unflatten(0, seen.shape[:2]), "value": found.value.view(seen.shape[:2])}


def scale_latent_gradient(x: Tensor) -> Tensor:
    """Return the same values, with half of their gradient."""
    return LATENT_GRADIENT_SCALE * x + (1 - LATENT_GRADIENT_SCALE) * x.detach()
