"""Compare our tree searches with DeepMind's mctx: equality of visits and actions, and processor time per search.

Both sides use the same tables of priors, values, rewards and next states (so that the time of the tree is measured, not
that of a model), the same number of simulations and settings, no noise, and one thread. mctx is compiled before the
timing. It computes in float32 and breaks ties by noise of 1e-7; ours computes in float64. The two sides alternate.

    pip install mctx jax
    python tools/bench_search.py --batch 32 --simulations 50
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["OMP_NUM_THREADS"] = "1"

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import torch

from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.tree_search import TreeSearch, TreeSearchResult
from vwm.planning.tree_search_model import NodePrediction, TreeStep

STATES = 4096
DISCOUNT = 0.97


class Tables:
    """A random Markov decision process as arrays that both sides read."""

    def __init__(self, actions: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.next = rng.integers(STATES, size=(STATES, actions))
        self.reward = rng.random((STATES, actions)).astype(np.float32)
        self.terminates = rng.random((STATES, actions)) < 0.02
        self.logits = rng.normal(size=(STATES, actions)).astype(np.float32)
        self.value = (10 * rng.random(STATES)).astype(np.float32)


class Ours:
    """The tables as the model of our tree searches."""

    def __init__(self, tables: Tables) -> None:
        for name, table in vars(tables).items():
            setattr(self, name, torch.from_numpy(table))

    next: torch.Tensor
    reward: torch.Tensor
    terminates: torch.Tensor
    logits: torch.Tensor
    value: torch.Tensor

    def predict(self, state: torch.Tensor) -> NodePrediction:
        """Look up prior and value; see ``TreeSearchModel.predict``."""
        return NodePrediction(self.logits[state], self.value[state])

    def step(self, state: torch.Tensor, action: torch.Tensor) -> TreeStep:
        """Look up the outcome; see ``TreeSearchModel.step``."""
        next_state = self.next[state, action]
        return TreeStep(
            next_state, self.reward[state, action], self.terminates[state, action], self.predict(next_state)
        )


def theirs(tables: Tables, kind: str, simulations: int) -> Callable[[np.ndarray], Any]:
    """Compile mctx's search: int [b] states -> its output."""
    table = {name: jnp.asarray(array) for name, array in vars(tables).items()}

    def step(params: Any, key: Any, action: Any, state: Any) -> Any:
        next_state = table["next"][state, action]
        output = mctx.RecurrentFnOutput(
            reward=table["reward"][state, action],
            discount=jnp.where(table["terminates"][state, action], 0.0, DISCOUNT),
            prior_logits=table["logits"][next_state],
            value=table["value"][next_state],
        )
        return output, next_state

    def search(state: Any) -> Any:
        root = mctx.RootFnOutput(prior_logits=table["logits"][state], value=table["value"][state], embedding=state)
        key = jax.random.PRNGKey(0)
        if kind == "gumbel":
            return mctx.gumbel_muzero_policy((), key, root, step, simulations, gumbel_scale=0.0)
        return mctx.muzero_policy((), key, root, step, simulations, dirichlet_fraction=0.0, temperature=0.0)

    return jax.jit(search)


def compare(kind: str, batch: int, simulations: int, actions: int, repeats: int) -> dict[str, Any]:
    """Measure equality over ``repeats`` batches, and the median time of a search on each side."""
    tables = Tables(actions, seed=0)
    search: TreeSearch = (GumbelMuZeroSearch if kind == "gumbel" else PUCTSearch)(simulations, min_value_range=1e-8)
    model, mctx_search = Ours(tables), theirs(tables, kind, simulations)
    rng = np.random.default_rng(1)
    jax.block_until_ready(mctx_search(rng.integers(STATES, size=batch)))
    times: dict[str, list[float]] = {"vwm": [], "mctx": []}
    equal_visits, equal_actions = 0, 0
    for _ in range(repeats):
        states = rng.integers(STATES, size=batch)
        start = time.process_time()
        ours: TreeSearchResult = search.search(model, torch.from_numpy(states), DISCOUNT)
        times["vwm"].append(time.process_time() - start)
        start = time.process_time()
        output = jax.block_until_ready(mctx_search(states))
        times["mctx"].append(time.process_time() - start)
        visits = np.asarray(output.search_tree.summary().visit_counts)
        equal_visits += int((visits == ours.visits.numpy()).all(axis=1).sum())
        # Among actions with equal visits, our PUCT search takes the first one.
        mctx_actions = visits.argmax(axis=1) if kind == "puct" else np.asarray(output.action)
        equal_actions += int((mctx_actions == ours.action.numpy()).sum())
    problems = repeats * batch
    return {
        "search": kind,
        "actions": actions,
        "batch": batch,
        "simulations": simulations,
        "problems": problems,
        "equal_visits": equal_visits / problems,
        "equal_actions": equal_actions / problems,
        **{f"{name}_ms": round(1000 * statistics.median(taken), 2) for name, taken in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--actions", type=int, nargs="+", default=[4, 18])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind in ("puct", "gumbel"):
        for actions in args.actions:
            print(json.dumps(compare(kind, args.batch, args.simulations, actions, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
