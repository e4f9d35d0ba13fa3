"""Codebooks: indices and codes agree, gradients pass, use is counted, idle VQ codes are revived."""

import pytest
import torch
from ranks import learn

from vwm.nn.quantize import Quantizer, code_counts, codebook_size, perplexity


@pytest.mark.parametrize("codebook", [32, [4, 3, 3], [2, 2, 2]])
def test_lookup_gives_the_codes_of_the_indices(codebook):
    torch.manual_seed(0)
    book = Quantizer(16, codebook, code_width=8).eval()
    x = torch.randn(2, 5, 7, 16, requires_grad=True)
    out = book(x)
    assert out.indices.shape == (2, 5, 7) and 0 <= out.indices.min() and out.indices.max() < book.size
    torch.testing.assert_close(book.lookup(out.indices), out.codes)
    book.train()(x).codes.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_idle_codes_are_revived():
    torch.manual_seed(0)
    book = Quantizer(8, 64, code_width=8).train()
    data = torch.randn(512, 8) * 0.05 + 3  # far from every code at the start
    used = [int((code_counts(book(data).indices, 64) > 0).sum()) for _ in range(60)]
    assert used[0] < 10 < 32 < used[-1]


def test_a_codebook_learns_from_every_ranks_data(tmp_path):
    learn(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(learn, (2, str(tmp_path)), nprocs=2)
    alone, *ranks = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for rank in ranks:
        torch.testing.assert_close(rank, alone)


def test_perplexity_counts_the_codes_in_use():
    assert float(perplexity(code_counts(torch.tensor([0, 1, 2, 3]), 10))) == pytest.approx(4)
    assert float(perplexity(code_counts(torch.tensor([5, 5, 5]), 10))) == pytest.approx(1)


def test_sizes():
    assert codebook_size(7) == 7 and codebook_size([8, 5, 5, 5]) == 1000
    with pytest.raises(ValueError, match="at least two codes"):
        codebook_size(1)
