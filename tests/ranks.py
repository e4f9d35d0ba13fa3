"""Functions that tests run in the processes of a distributed group.

Processes import them from this module by its name ``ranks``: a new process cannot import test modules, because an
installed package may be called ``tests`` too (that of opensimplex is).
"""

import torch

from vwm.nn.quantize import Quantizer


def learn(rank: int, ranks: int, folder: str) -> None:
    """Train a codebook on a rank's share of the data and save it in the folder."""
    if ranks > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    quantizer = Quantizer(8, 4, code_width=8).train()
    data = torch.randn(4096, 8, generator=torch.Generator().manual_seed(1))  # enough data that every code is used
    for _ in range(3):
        quantizer(data.chunk(ranks)[rank])
    torch.save(quantizer.state_dict(), f"{folder}/{ranks}-{rank}.pt")
    if ranks > 1:
        torch.distributed.destroy_process_group()  # without it, threads abort one in ten processes at exit
