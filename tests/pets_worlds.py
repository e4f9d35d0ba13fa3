"""Small probabilistic ensembles shared by tests, with all weights random, like the networks of ``factories``."""

from __future__ import annotations

import torch
from factories import randomize

from vwm.core.spaces import ActionSpace
from vwm.models.pets.network import ProbabilisticEnsemble
from vwm.models.pets.simulator import PETSSimulator, TrajectorySampling


def make_ensemble(num_actions: int = 4, action_dims: int = 0, **changes) -> ProbabilisticEnsemble:
    """An ensemble over vectors of 5 numbers whose predictions vary visibly."""
    torch.manual_seed(3)
    settings = {"observation_size": 5, "members": 2, "width": 8, "layers": 1, **changes}
    ensemble = randomize(ProbabilisticEnsemble(num_actions=num_actions, action_dims=action_dims, **settings))
    ensemble.input_mean.fill_(0.1)
    ensemble.input_square.fill_(1.5)
    return ensemble


def pets_world(action_dims: int = 0, sampling: TrajectorySampling | None = None, **changes) -> PETSSimulator:
    """A probabilistic ensemble as a simulator, with starting contexts."""
    names = ("steer", "gas", "brake")[:action_dims] if action_dims else ("LEFT", "RIGHT", "UP", "noop")
    return PETSSimulator(
        make_ensemble(0 if action_dims else 4, action_dims, **changes),
        ActionSpace("continuous" if action_dims else "discrete", action_dims or 4, names),
        context_frames=1,
        title="noise",
        sampling=sampling,
        starts=torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(4)),
    )
