"""Compiled networks of agents."""

import torch
from torch import nn
from torch._dynamo import config, reset

from vwm.runs.training_runtime import compile_networks


@config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True)
def test_every_part_runs_compiled_however_many_there_are():
    """Containers share one function of torch, whose compiled variants are counted together."""
    reset()
    parts = nn.ModuleList(nn.Sequential(*(nn.Linear(2, 2) for _ in range(depth))) for depth in range(1, 13))
    x = torch.ones(1, 2)
    expected = [part(x) for part in parts]
    compile_networks(nn.ModuleDict({"parts": parts}), backend="eager")
    torch.testing.assert_close([part(x) for part in parts], expected)
    reset()
