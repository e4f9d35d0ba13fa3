"""Quantizers: indices and codes agree, gradients pass, usage is counted, unused VQ codes are reset."""

import pytest
import torch
from ranks import learn
from vector_quantize_pytorch import FSQ

from vwm.nn.finite_scalar_codebook import FiniteScalarCodebook
from vwm.nn.quantize import Quantizer, code_counts, codebook_size, perplexity


@pytest.mark.parametrize("codebook", [32, [4, 3, 3], [2, 2, 2]])
def test_lookup_returns_the_codes_of_the_indices(codebook):
    torch.manual_seed(0)
    quantizer = Quantizer(16, codebook, code_width=8).eval()
    x = torch.randn(2, 5, 7, 16, requires_grad=True)
    out = quantizer(x)
    assert out.indices.shape == (2, 5, 7) and 0 <= out.indices.min() and out.indices.max() < quantizer.size
    torch.testing.assert_close(quantizer.lookup(out.indices), out.codes)
    quantizer.train()(x).codes.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 2, 2], [4, 3, 2], [7, 6]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fsq_equals_that_of_vector_quantize_pytorch(levels, dtype):
    books = []
    for make in (FiniteScalarCodebook, lambda levels, width: FSQ(levels, width, preserve_symmetry=2 in levels)):
        torch.manual_seed(0)
        books.append(make(levels, 16).to(dtype))
    ours, theirs = books
    theirs.load_state_dict(ours.state_dict())
    x = (4 * torch.randn(1, 200, 16)).to(dtype).requires_grad_()
    results = [book(x) for book in books]
    for mine, reference in zip(*results, strict=True):
        assert mine.dtype == reference.dtype and torch.equal(mine, reference)
    gradients = [torch.autograd.grad((out * x.detach()).sum(), x)[0] for out, _ in results]
    assert torch.equal(*gradients) and gradients[0].any()
    torch.testing.assert_close(ours.codes, theirs.implicit_codebook, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_vq_in_eval_mode_equals_the_library(dtype):
    torch.manual_seed(0)
    quantizer = Quantizer(16, 32, code_width=8).to(dtype).eval()
    x = torch.randn(1, 200, 16, dtype=dtype)
    codes, indices, _ = quantizer.book(x)
    out = quantizer(x)
    assert torch.equal(out.indices, indices) and len(indices.unique()) > 10
    torch.testing.assert_close(out.codes, codes)


def test_unused_codes_are_reset():
    torch.manual_seed(0)
    quantizer = Quantizer(8, 64, code_width=8).train()
    data = torch.randn(512, 8) * 0.05 + 3  # far from every code at the start
    used = [int((code_counts(quantizer(data).indices, 64) > 0).sum()) for _ in range(60)]
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


def test_codebook_sizes():
    assert codebook_size(7) == 7 and codebook_size([8, 5, 5, 5]) == 1000
    with pytest.raises(ValueError, match="at least two codes"):
        codebook_size(1)
