"""What the processes of a group run in tests.

They import it by this name: the modules of tests have none that a fresh process finds, as some package that is
installed may be called ``tests``, too (opensimplex's is).
"""

import torch

from vwm.nn.quantize import Quantizer


def learn(rank: int, ranks: int, folder: str) -> None:
    """Train a codebook on a rank's share of the data, and leave it in the folder."""
    if ranks > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    book = Quantizer(8, 4, code_width=8).train()
    data = torch.randn(4096, 8, generator=torch.Generator().manual_seed(1))  # enough that no code idles
    for _ in range(3):
        book(data.chunk(ranks)[rank])
    torch.save(book.state_dict(), f"{folder}/{ranks}-{rank}.pt")
    if ranks > 1:
        torch.distributed.destroy_process_group()  # left to the exit, its threads abort one process in ten
