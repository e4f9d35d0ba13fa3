"""The recurrent state-space model (PlaNet, arXiv 1811.04551): the world of every Dreamer.

A state has a deterministic part, which a recurrent cell moves on, and stochastic variables. The *prior* draws them from
the deterministic part alone, the *posterior* sees the observation too. Versions differ in the cell, the variables and
the layers; all are choices of one class.

Legend: b batch, t time, d deterministic width, s variables, p parameters a variable, e width of an embedded
observation, a width of an action as numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

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
    """A world a batch entry, or with a dimension of time [b, t, ...].

    Attributes:
        deter: [b, d].
        stoch: [b, s], or the one-hot vectors of s variables one after the other [b, s c].
        parameters: [b, s, p], of the distribution that ``stoch`` was drawn from; see ``StochasticLatent``.
        action: [b, a], what was done at this moment, as numbers (``RSSM.vector``); 0 until something is.
    """

    deter: Tensor
    stoch: Tensor
    parameters: Tensor
    action: Tensor


class RSSM(ModelMixin, ConfigMixin):
    """See above. ``action[t]`` is taken at ``observation[t]`` and moves the state on to t + 1.

    Args:
        num_actions: number of discrete actions (int64 [...]); 0 for continuous ones.
        action_dims: dimensions of continuous actions (float [..., dims]).
        embed: e.
        deter: d.
        hidden: width of the layers.
        stoch: s, number of variables.
        classes: c, of each variable; 0 for Gaussian ones.
        cell: ``"gru"`` (PlaNet, Dreamer v1), ``"norm_gru"`` (v2) or ``"block_gru"`` (v3).
        blocks: of a ``block_gru``.
        unimix: see ``CategoricalLatent``.
        min_std: see ``GaussianLatent``.
        prior_layers, posterior_layers: layers of each, before their output.
        norm, activation: of the layers.

    Raises:
        ValueError: not exactly one kind of action, or choices that do not go together.
    """

    @register_to_config
    def __init__(
        self,
        num_actions: int = 0,
        action_dims: int = 0,
        embed: int = 1024,
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
            raise ValueError(f"a world has one kind of action: num_actions={num_actions}, action_dims={action_dims}")
        if prior_layers < 1 or posterior_layers < 1:
            raise ValueError(f"prior_layers={prior_layers} and posterior_layers={posterior_layers} must be at least 1")
        self.num_actions, self.action_width = num_actions, num_actions or action_dims
        self.stochastic: StochasticLatent = (
            CategoricalLatent(stoch, classes, unimix) if classes else GaussianLatent(stoch, min_std)
        )
        self.deter, self.feature_width = deter, deter + self.stochastic.width
        widths = (deter, self.stochastic.width, self.action_width, hidden, norm, activation)
        if cell == "block_gru":
            self.recurrent: RecurrentCell = BlockDiagonalGRUCell(*widths, blocks=blocks)
        elif cell in ("gru", "norm_gru"):
            self.recurrent = PlaNetGRUCell(*widths) if cell == "gru" else LayerNormGRUCell(*widths)
        else:
            raise ValueError(f"cell={cell!r} is none of 'gru', 'norm_gru', 'block_gru'")
        self.prior = nn.Sequential(
            make_dense_mlp(deter, hidden, prior_layers, norm, activation),
            make_output_layer(hidden, self.stochastic.raw, norm),
        )
        self.see = MultiInputDense([deter, embed], hidden, norm, activation)
        self.posterior = nn.Sequential(
            make_dense_mlp(hidden, hidden, posterior_layers - 1, norm, activation),
            make_output_layer(hidden, self.stochastic.raw, norm),
        )

    def init_state(self, batch: int) -> RSSMState:
        """States in which nothing has been seen or done."""
        zeros = next(self.parameters()).new_zeros
        parameters = self.stochastic.parameters(zeros(batch, self.stochastic.raw))
        return RSSMState(
            zeros(batch, self.deter), zeros(batch, self.stochastic.width), parameters, zeros(batch, self.action_width)
        )

    def restore(self, deter: Tensor, stoch: Tensor, action: Tensor) -> RSSMState:
        """A state to go on from, of what replay keeps: [b, d], [b, width], and the action taken there."""
        state = self.init_state(len(deter))
        return state._replace(deter=deter.to(state.deter), stoch=stoch.to(state.stoch), action=self.vector(action))

    def features(self, state: RSSMState) -> Tensor:
        """What everything else is read from: [..., d + width]."""
        return torch.cat((state.deter, state.stoch), dim=-1)

    def vector(self, action: Tensor) -> Tensor:
        """Actions as numbers: int64 [...] as one-hots, float [..., dims] cut to [-1, 1] -> [..., a]."""
        dtype = next(self.parameters()).dtype
        if self.num_actions:
            if action.is_floating_point():
                raise ValueError(f"actions must be integers in 0..{self.num_actions - 1}, got {action.dtype}")
            return F.one_hot(action, self.num_actions).to(dtype)
        if action.shape[-1] != self.action_width or not action.is_floating_point():
            raise ValueError(
                f"actions must be floats [..., {self.action_width}], got {action.dtype} {list(action.shape)}"
            )
        return (action / action.detach().abs().clamp(min=1)).to(dtype)

    def act(self, state: RSSMState, action: Tensor) -> RSSMState:
        """The state in which this action ([...] or [..., dims]) was taken."""
        return state._replace(action=self.vector(action))

    def imagine(self, state: RSSMState, action: Tensor, noise: Tensor | None = None) -> RSSMState:
        """Where an action leads, as the prior has it.

        Args:
            state: of b worlds.
            action: int64 [b] or float [b, dims], taken at the state.
            noise: [b, s], one random number a variable (uniform for classes, normal for Gaussians); None draws it
                from torch's generator.
        """
        return self.advance(self.act(state, action), noise)

    def advance(self, state: RSSMState, noise: Tensor | None = None) -> RSSMState:
        """``imagine`` for a state that holds its action already; see ``act``."""
        deter = self.recurrent(state.deter, state.stoch, self.recurrent.prepare(state.action))
        return self._draw(deter, self.prior(deter), noise)

    def observe_step(
        self, state: RSSMState, embed: Tensor, is_first: Tensor, noise: Tensor | None = None
    ) -> tuple[RSSMState, Tensor]:
        """``observe`` for one moment, when what will be done there is not known yet; see ``act``.

        Args:
            state: of the moment before, with the action taken there.
            embed: [b, e].
            is_first: bool [b].
            noise: [b, s], see ``imagine``.

        Returns:
            The posterior state, and the prior's parameters [b, s, p].
        """
        state = self._reset_where(state, is_first)
        deter = self.recurrent(state.deter, state.stoch, self.recurrent.prepare(state.action))
        seen = self.see.finish(self.see.part(0, deter) + self.see.part(1, embed))
        return self._draw(deter, self.posterior(seen), noise), self.stochastic.parameters(self.prior(deter))

    def observe(
        self,
        embed: Tensor,
        action: Tensor,
        is_first: Tensor,
        state: RSSMState | None = None,
        noise: Tensor | None = None,
    ) -> tuple[RSSMState, Tensor]:
        """Follow sequences.

        Args:
            embed: [b, t, e], of the observations.
            action: int64 [b, t] or float [b, t, dims], taken at each of them.
            is_first: bool [b, t], where an episode begins: the state before it is forgotten, and the action too.
            state: of the moment before the first; None where there is none.
            noise: [b, t, s], see ``imagine``.

        Returns:
            Posterior states [b, t, ...], and the priors' parameters [b, t, s, p]. The last state
            (``last_rssm_state(states)``) is what the sequence's continuation is to be observed from.
        """
        state = self.init_state(len(embed)) if state is None else state
        action = self.vector(action)
        before = torch.cat((state.action[:, None].to(action.dtype), action[:, :-1]), dim=1)
        prepared = self.recurrent.prepare(before.masked_fill(is_first[..., None], 0)).unbind(1)
        seen, forget = self.see.part(1, embed).unbind(1), is_first[..., None].unbind(1)
        deter, stoch, steps = state.deter, state.stoch, []
        for t in range(embed.shape[1]):
            deter, stoch = deter.masked_fill(forget[t], 0), stoch.masked_fill(forget[t], 0)
            deter = self.recurrent(deter, stoch, prepared[t])
            raw = self.posterior(self.see.finish(self.see.part(0, deter) + seen[t]))
            step = self._draw(deter, raw, None if noise is None else noise[:, t])
            stoch = step.stoch
            steps.append(step)
        states = RSSMState(*(torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)))._replace(action=action)
        return states, self.stochastic.parameters(self.prior(states.deter))

    def _draw(self, deter: Tensor, raw: Tensor, noise: Tensor | None) -> RSSMState:
        parameters = self.stochastic.parameters(raw)
        noise = self.stochastic.noise(parameters) if noise is None else noise
        stoch = self.stochastic.sample(parameters, noise).to(deter.dtype)
        return RSSMState(deter, stoch, parameters, deter.new_zeros(len(deter), self.action_width))

    def _reset_where(self, state: RSSMState, where: Tensor) -> RSSMState:
        deter, stoch, action = (x.masked_fill(where[:, None], 0) for x in (state.deter, state.stoch, state.action))
        return RSSMState(deter, stoch, state.parameters, action)


def last_rssm_state(states: RSSMState) -> RSSMState:
    """The last moment of states over time: [b, t, ...] -> [b, ...]."""
    return RSSMState(*(part[:, -1] for part in states))


def flatten_rssm_states(states: RSSMState) -> RSSMState:
    """Every moment as a world of its own, to imagine from: [b, t, ...] -> [b t, ...]."""
    return RSSMState(*(part.flatten(0, 1) for part in states))
