"""Hash what every part of the package computes, seeded and on one thread, to compare before and after a change.

``PYTHONPATH=. OMP_NUM_THREADS=1 python tools/baseline OUT.json [simulators|modules|agents|data ...]``. One key per
value; scalars are stored as floats, too. Weights are hashed twice: ``weights`` independently of their names and
order, ``weights_by_name`` with both. A case that fails leaves ``CASE/ERROR``, and the exit status is 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from data_cases import orders, shards
from hashing import FOUND, case
from learning_cases import agents
from module_cases import modules
from simulator_cases import simulators


def main() -> int:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    groups = {"simulators": simulators, "modules": modules, "agents": agents}
    chosen = sys.argv[2:] or [*groups, "data"]
    for name in chosen:
        if name == "data":
            case("data/order", orders)
            case("data/shards", shards)
        else:
            groups[name]()
    Path(sys.argv[1]).write_text(json.dumps(FOUND, indent=1, sort_keys=True) + "\n")
    failed = [name for name in FOUND if name.endswith("/ERROR")]
    print(f"{len(FOUND)} keys, failed: {failed}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
