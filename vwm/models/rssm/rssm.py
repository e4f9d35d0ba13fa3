"""Recurrent state-space model (RSSM) of PlaNet (arXiv 1811.04551) and the Dreamers.

A state has a deterministic part, which a recurrent cell updates, and stochastic variables. The *prior* predicts the
variables from the deterministic part alone; the *posterior* also takes the observation. The published versions differ
in the cell, the variables and the layers; one class covers all of them.

Dimensions: b batch, t time, d deterministic size, s variables, p parameters per variable, z sample size of the
stochastic part, e embedding size of an observation, a size of an encoded action.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.rssm.recurrent_cells import (
    BlockDiagonalGRUCell,
    LayerNormGRUCell,
    PlaNetGRUCell,
    RecurrentCell,
    RecurrentCellType,
)
from vwm.models.rssm.stochastic_latents import CategoricalLatent, GaussianLatent, StochasticLatent
from vwm.nn.dense_layers import ActivationType, MultiInputDense, NormType, make_dense_mlp, make_output_layer


class RSSMState(NamedTuple):
    """Latent state of a batch; sequences have a time dimension [b, t, ...].

    Attributes:
        deter: [b, d], deterministic part.
        stoch: [b, z], sample of the stochastic part: s numbers, or s one-hot vectors concatenated.
        parameters: [b, s, p], parameters of the distribution of ``stoch``; see ``StochasticLatent``.
        action: [b, a], encoded action taken in this state (``RSSM.encode_action``); 0 until one is set.
    """

    deter: Tensor
    stoch: Tensor
    parameters: Tensor
    action: Tensor


class RSSM(ModelMixin, ConfigMixin):
    """Recurrent state-space model; ``action[t]`` is taken at ``observation[t]`` and leads to state t + 1.

    Args:
        num_actions: Number of discrete actions (int64 [...]); 0 for continuous actions.
        action_dims: Dimensions of continuous actions (float [..., action_dims]); 0 for discrete actions.
        embedding_size: e.
        deter: d.
        hidden: Width of the hidden layers.
        stoch: s, number of stochastic variables.
        classes: Classes per variable; 0 for Gaussian variables.
        cell: ``"gru"`` (PlaNet, Dreamer v1), ``"norm_gru"`` (DreamerV2) or ``"block_gru"`` (DreamerV3).
        blocks: Number of blocks of ``"block_gru"``.
        unimix: See ``CategoricalLatent``.
        min_std: See ``GaussianLatent``.
        prior_layers: Hidden layers of the prior.
        posterior_layers: Hidden layers of the posterior.
        norm: Normalization of the hidden layers.
        activation: Activation of the hidden layers.

    Raises:
        ValueError: Not exactly one kind of action, or incompatible settings.
    """

    @register_to_config
    def __init__(
        self,
        num_actions: int = 0,
        action_dims: int = 0,
        embedding_size: int = 1024,
        deter: int = 2048,
        hidden: int = 256,
        stoch: int = 32,
        classes: int = 16,
        cell: RecurrentCellType = "block_gru",
        blocks: int = 8,
        unimix: float = 0.01,
        min_std: float = 0.1,
        prior_layers: int = 2,
        posterior_layers: int = 1,
        norm: NormType = "rms",
        activation: ActivationType = "silu",
    ) -> None:
        super().__init__()
        if (num_actions > 0) == (action_dims > 0):
            raise ValueError(
                f"set exactly one of num_actions and action_dims: num_actions={num_actions}, action_dims={action_dims}"
            )
        if prior_layers < 1 or posterior_layers < 1:
            raise ValueError(f"prior_layers={prior_layers} and posterior_layers={posterior_layers} must be at least 1")
        self.num_actions = num_actions
        self.action_size = num_actions or action_dims
        self.stochastic: StochasticLatent = (
            CategoricalLatent(stoch, classes, unimix) if classes else GaussianLatent(stoch, min_std)
        )
        self.deter_size = deter
        self.feature_size = deter + self.stochastic.sample_size
        cell_arguments: dict[str, Any] = {
            "deter": deter,
            "stoch": self.stochastic.sample_size,
            "action": self.action_size,
            "hidden": hidden,
            "norm": norm,
            "activation": activation,
        }
        self.recurrent_cell: RecurrentCell
        if cell == "block_gru":
            self.recurrent_cell = BlockDiagonalGRUCell(**cell_arguments, blocks=blocks)
        elif cell == "norm_gru":
            self.recurrent_cell = LayerNormGRUCell(**cell_arguments)
        elif cell == "gru":
            self.recurrent_cell = PlaNetGRUCell(**cell_arguments)
        else:
            raise ValueError(f"cell={cell!r} must be 'gru', 'norm_gru' or 'block_gru'")
        self.prior = nn.Sequential(
            make_dense_mlp(deter, hidden, prior_layers, norm, activation),
            make_output_layer(hidden, self.stochastic.num_outputs, norm),
        )
        self.posterior_input = MultiInputDense([deter, embedding_size], width=hidden, norm=norm, activation=activation)
        self.posterior = nn.Sequential(
            make_dense_mlp(hidden, hidden, posterior_layers - 1, norm, activation),
            make_output_layer(hidden, self.stochastic.num_outputs, norm),
        )

    def init_state(self, batch: int) -> RSSMState:
        """Return states before any observation or action."""
        zeros = next(self.parameters()).new_zeros
        return RSSMState(
            deter=zeros(batch, self.deter_size),
            stoch=zeros(batch, self.stochastic.sample_size),
            parameters=self.stochastic.distribution_parameters(zeros(batch, self.stochastic.num_outputs)),
            action=zeros(batch, self.action_size),
        )

    def state_from_replay(self, deter: Tensor, stoch: Tensor, action: Tensor) -> RSSMState:
        """Return states to continue from, given what replay stores: [b, d], [b, z], and the action taken there."""
        state = self.init_state(len(deter))
        return state._replace(
            deter=deter.to(state.deter), stoch=stoch.to(state.stoch), action=self.encode_action(action)
        )

    def features(self, state: RSSMState) -> Tensor:
        """Return the features that decoder, heads and policies take: [..., d + z]."""
        return torch.cat((state.deter, state.stoch), dim=-1)

    def encode_action(self, action: Tensor) -> Tensor:
        """Encode int64 [...] as one-hot vectors, clip float [..., action_dims] to [-1, 1]; both -> [..., a].

        Raises:
            ValueError: Actions of another type or shape.
        """
        dtype = next(self.parameters()).dtype
        if self.num_actions:
            if action.is_floating_point():
                raise ValueError(f"actions must be integers in 0..{self.num_actions - 1}, got {action.dtype}")
            return F.one_hot(action, self.num_actions).to(dtype)
        if action.shape[-1] != self.action_size or not action.is_floating_point():
            raise ValueError(
                f"actions must be floats [..., {self.action_size}], got {action.dtype} {list(action.shape)}"
            )
        return (action / action.detach().abs().clamp(min=1)).to(dtype)

    def with_action(self, state: RSSMState, action: Tensor) -> RSSMState:
        """Return the state with the action taken there, int64 [...] or float [..., action_dims]."""
        return state._replace(action=self.encode_action(action))

    def imagine_step(self, state: RSSMState, action: Tensor, noise: Tensor | None = None) -> RSSMState:
        """Return the next state, sampled from the prior.

        Args:
            state: Current states of the batch.
            action: int64 [b] or float [b, action_dims], taken in ``state``.
            noise: [b, s], one random number per variable (uniform for categorical, standard normal for Gaussian
                variables); None draws it from torch's generator.
        """
        return self.prior_step(self.with_action(state, action), noise)

    def prior_step(self, state: RSSMState, noise: Tensor | None = None) -> RSSMState:
        """Return ``imagine_step`` of a state that already contains its action (see ``with_action``)."""
        deter = self._next_deter(state)
        return self._sample_state(deter, self.prior(deter), noise)

    def observe_step(
        self, state: RSSMState, embedding: Tensor, is_first: Tensor, noise: Tensor | None = None
    ) -> tuple[RSSMState, Tensor]:
        """Run ``observe`` for one time step, before its action is known (see ``with_action``).

        Args:
            state: State of the previous time step, with the action taken there.
            embedding: [b, e], embedded observation.
            is_first: bool [b], whether an episode begins here.
            noise: [b, s], see ``imagine_step``.

        Returns:
            The posterior state, and the prior's parameters [b, s, p].
        """
        deter = self._next_deter(self._reset_where(state, is_first))
        projection = self.posterior_input
        hidden = projection.norm_and_activate(
            projection.project_input(0, deter) + projection.project_input(1, embedding)
        )
        posterior = self._sample_state(deter, self.posterior(hidden), noise)
        return posterior, self.stochastic.distribution_parameters(self.prior(deter))

    def observe(
        self,
        embeddings: Tensor,
        action: Tensor,
        is_first: Tensor,
        state: RSSMState | None = None,
        noise: Tensor | None = None,
    ) -> tuple[RSSMState, Tensor]:
        """Filter sequences of observations.

        Args:
            embeddings: [b, t, e], embedded observations.
            action: int64 [b, t] or float [b, t, action_dims], taken at these observations.
            is_first: bool [b, t], where episodes begin; the previous state and action are reset there.
            state: State of the time step before the first; None starts from ``init_state``.
            noise: [b, t, s], see ``imagine_step``.

        Returns:
            Posterior states [b, t, ...], and the prior's parameters [b, t, s, p]. The continuation of the sequence is
            observed from the last state, ``last_rssm_state(states)``.
        """
        state = self.init_state(len(embeddings)) if state is None else state
        action = self.encode_action(action)
        previous = torch.cat((state.action[:, None].to(action.dtype), action[:, :-1]), dim=1)
        projected_actions = self.recurrent_cell.project_action(previous.masked_fill(is_first[..., None], 0)).unbind(1)
        projection = self.posterior_input
        projected_embeddings = projection.project_input(1, embeddings).unbind(1)
        reset = is_first[..., None].unbind(1)
        deter = state.deter
        stoch = state.stoch
        steps = []
        for t in range(embeddings.shape[1]):
            deter = deter.masked_fill(reset[t], 0)
            stoch = stoch.masked_fill(reset[t], 0)
            deter = self.recurrent_cell(deter, stoch, projected_actions[t])
            hidden = projection.norm_and_activate(projection.project_input(0, deter) + projected_embeddings[t])
            step = self._sample_state(deter, self.posterior(hidden), None if noise is None else noise[:, t])
            stoch = step.stoch
            steps.append(step)
        states = RSSMState(*(torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)))._replace(action=action)
        return states, self.stochastic.distribution_parameters(self.prior(states.deter))

    def _next_deter(self, state: RSSMState) -> Tensor:
        cell = self.recurrent_cell
        next_deter: Tensor = cell(state.deter, state.stoch, cell.project_action(state.action))
        return next_deter

    def _sample_state(self, deter: Tensor, outputs: Tensor, noise: Tensor | None) -> RSSMState:
        parameters = self.stochastic.distribution_parameters(outputs)
        noise = self.stochastic.sample_noise(parameters) if noise is None else noise
        stoch = self.stochastic.sample(parameters, noise).to(deter.dtype)
        return RSSMState(deter, stoch, parameters, action=deter.new_zeros(len(deter), self.action_size))

    def _reset_where(self, state: RSSMState, where: Tensor) -> RSSMState:
        deter, stoch, action = (x.masked_fill(where[:, None], 0) for x in (state.deter, state.stoch, state.action))
        return RSSMState(deter=deter, stoch=stoch, parameters=state.parameters, action=action)


def last_rssm_state(states: RSSMState) -> RSSMState:
    """Return the states of the last time step: [b, t, ...] -> [b, ...]."""
    return RSSMState(*(part[:, -1] for part in states))


def flatten_rssm_states(states: RSSMState) -> RSSMState:
    """Return every time step as a batch entry, to imagine from: [b, t, ...] -> [b t, ...]."""
    return RSSMState(*(part.flatten(0, 1) for part in states))
