"""Vector quantization (VQ) and finite scalar quantization (FSQ) behind one interface, and codebook usage."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vwm.core.process_group import is_distributed, rank_count
from vwm.nn.context_parallel import ContextGroup
from vwm.nn.finite_scalar_codebook import FiniteScalarCodebook
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_over_ranks_with_gradient

if TYPE_CHECKING:
    from vector_quantize_pytorch import VectorQuantize

Codebook = int | list[int]
"""A number of codes (VQ), or the levels of each dimension (FSQ, arXiv 2309.15505): ``1024`` or ``[8, 5, 5, 5]``."""
MAX_CODEBOOK_SIZE = 2**20
"""Limit of what a config may ask for; the largest published video codebooks have 64,000 codes."""


class QuantizerOutput(NamedTuple):
    """codes [..., d] with a straight-through gradient, indices int64 [...], and the commitment loss (0 for FSQ)."""

    codes: Tensor
    indices: Tensor
    loss: Tensor


def make_codebook(width: int, codebook: Codebook, code_width: int) -> VectorQuantize | FiniteScalarCodebook:
    """Make the codebook of a ``Quantizer``."""
    if not isinstance(codebook, int):
        return FiniteScalarCodebook(codebook, width)
    # Imported where it is used: it imports torch's compiler and sympy, which takes as long as to import torch.
    from vector_quantize_pytorch import VectorQuantize

    # Codes used less than twice per batch (on a running average) are replaced by vectors of the batch.
    return VectorQuantize(
        dim=width, codebook_size=codebook, codebook_dim=code_width, threshold_ema_dead_code=2, decay=0.95
    )


class Quantizer(nn.Module):
    """Project to the code space, quantize and project back.

    Args:
        width: d, width of inputs and outputs.
        codebook: see ``Codebook``.
        code_width: dimension of a VQ code (Genie: 32); FSQ's is its number of levels.
        spread_weight: with FSQ, weight of a loss that keeps all dimensions in use (see ``codebook_spread_loss``); small
            codebooks collapse without it.

    Attributes:
        context_group: processes that quantize the same vectors, which count once in statistics (not those of VQ); None
            where all vectors differ.
    """

    context_group: ContextGroup | None = None

    def __init__(self, width: int, codebook: Codebook, code_width: int = 32, spread_weight: float = 0.0) -> None:
        super().__init__()
        self.spread_weight = spread_weight
        self.size = codebook_size(codebook)
        if not 1 <= self.size <= MAX_CODEBOOK_SIZE:
            raise ValueError(f"a codebook has 1 to {MAX_CODEBOOK_SIZE} codes, got {codebook} with {self.size}")
        # The library reads values of its tensors; a network that is built without memory has a book all the same.
        is_meta = torch.get_default_device().type == "meta"
        with torch.device("cpu") if is_meta else nullcontext():
            self.book = make_codebook(width, codebook, code_width)

    def forward(self, x: Tensor) -> QuantizerOutput:
        """[..., d] -> codes, indices, commitment loss. Computed in at least float32, even under autocast.

        With weights in half precision (``--trainer.precision bf16-true``) it is computed in that.
        """
        if self.training and is_distributed() and not isinstance(self.book, FiniteScalarCodebook):
            # The codebook looks for other ranks when it is constructed, which is before they are initialized. Without
            # this it would learn from the data of the first rank only.
            self.book._codebook.all_reduce_fn = dist.all_reduce
        flat = x.reshape(1, -1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            weight = next(self.book.parameters(), flat)
            is_half = weight.dtype in (torch.float16, torch.bfloat16)
            flat = flat.to(weight.dtype) if is_half else at_least_float32(flat)
            is_vq = not isinstance(self.book, FiniteScalarCodebook)
            out = self._nearest(flat) if is_vq and not self.training else self.book(flat)
            if is_vq:
                loss = out[2].sum()
            elif self.spread_weight and self.training:
                copies = 1 if self.context_group is None else self.context_group.size
                loss = self.spread_weight * codebook_spread_loss(self.book.project_in(flat)[0], copies)
            else:
                loss = flat.new_zeros(())
        codes, indices = out[0], out[1]
        return QuantizerOutput(codes.reshape(x.shape), indices.reshape(x.shape[:-1]).long(), loss)

    def _nearest(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the VQ library computes of vectors [1, m, d] in eval mode, without reading a value in Python."""
        book: Any = self.book
        indices = torch.cdist(book.project_in(flat).float(), book._codebook.embed.float()).argmin(-1)
        return book.get_output_from_indices(indices), indices, flat.new_zeros(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices: int64 [...] -> [..., d]."""
        flat = indices.reshape(1, -1)
        if isinstance(self.book, FiniteScalarCodebook):
            codes = self.book.lookup(flat)
        else:
            codes = self.book.get_output_from_indices(flat)
        return codes.reshape(*indices.shape, -1)


def codebook_size(codebook: Codebook) -> int:
    """Number of codes. Raises ValueError for fewer than two."""
    size = codebook if isinstance(codebook, int) else math.prod(codebook)
    if size < 2 or (isinstance(codebook, list) and min(codebook) < 2):
        raise ValueError(f"codebook={codebook} must have at least two codes, and FSQ two levels in each dimension")
    return size


def codebook_spread_loss(z: Tensor, copies: int = 1) -> Tensor:
    """Loss that keeps the dimensions of a global batch centered, spread and uncorrelated: float [m, d] -> scalar.

    The variance hinge and the covariance term of VICReg (arXiv 2105.04906, eqs. 1 and 3), and the mean squared.
    ``copies`` processes each have the same vectors.
    """
    mean = mean_over_ranks_with_gradient(z.mean(0))
    centered, samples = z - mean, len(z) * rank_count() // copies
    covariance = mean_over_ranks_with_gradient(centered.T @ centered / len(z)) * (samples / max(1, samples - 1))
    deviation = (covariance.diagonal() + 1e-4).sqrt()
    correlation = covariance / (deviation[:, None] * deviation)
    off_diagonal = correlation - torch.diag(correlation.diagonal())
    return (1 - deviation).relu().mean() + mean.square().mean() + off_diagonal.square().sum() / max(1, len(mean))


def code_counts(indices: Tensor, size: int) -> Tensor:
    """Number of uses of each code: float64 [size]."""
    return torch.bincount(indices.flatten(), minlength=size).double()


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of a histogram: the effective number of codes in use, between 1 and the size of the codebook."""
    p = counts / counts.sum()
    return torch.special.entr(p).sum().exp()
