"""Operations on the meta device as an accelerator runs them: fused attention and norms, and automatic mixed precision.

Tensors on the meta device have shapes and no memory. torch neither fuses those for them nor casts them under
autocast, so that without this the matrices of attention weights would count, and all activations as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

LOWERED = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch._C._nn.linear,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, F.scaled_dot_product_attention,
}  # fmt: skip
"""What autocast computes in the lower precision, on every device."""
RAISED_ON_CUDA = {
    F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.mse_loss, F.l1_loss, F.smooth_l1_loss,
    F.softplus, F.cosine_similarity, F.binary_cross_entropy_with_logits, F.kl_div, F.nll_loss, F.huber_loss,
    torch.softmax, torch.log_softmax, torch.layer_norm, torch.group_norm, torch.exp, torch.log, torch.pow, torch.norm,
    torch.rsqrt, torch.reciprocal, torch.cumsum, torch.cumprod, torch.prod, torch.sum, torch.cdist,
    Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.norm, Tensor.rsqrt,
    Tensor.reciprocal, Tensor.cumsum, Tensor.cumprod, Tensor.prod, Tensor.sum,
}  # fmt: skip
"""What autocast computes in float32 on CUDA (torch's documentation, "CUDA Ops that can autocast to float32")."""


class MetaKernels(TorchFunctionMode):
    """Run what is inside the with-statement on the meta device as on CUDA.

    Args:
        compute_dtype: the lower precision of autocast; None computes in the types of the tensors.
        keeps_casts: whether weights in the lower precision are cast once, and kept for the whole forward pass.
    """

    def __init__(self, compute_dtype: torch.dtype | None = None, keeps_casts: bool = False) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self._keeps_casts = keeps_casts
        self._cast_weights: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = dict(kwargs or {})
        if self.compute_dtype is not None:
            if func in LOWERED:
                args, kwargs = self._cast((args, kwargs), self.compute_dtype)
            elif func in RAISED_ON_CUDA:
                args, kwargs = self._cast((args, kwargs), torch.float32)
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _fused_attention(*args, **kwargs)
        if func is F.rms_norm and args[0].is_meta:
            return torch.ops.aten._fused_rms_norm(*args, **kwargs)[0]
        if func is torch.bincount and args[0].is_meta:
            return args[0].new_empty(kwargs["minlength"])
        return func(*args, **kwargs)

    @contextmanager
    def as_autocast(self) -> Iterator[None]:
        """Answer torch's questions about autocast on the meta device, which it does not know, for these kernels."""
        names = ("autocast", "is_autocast_enabled", "get_autocast_dtype")
        autocast, is_enabled, get_dtype = originals = [getattr(torch, name) for name in names]

        def make_autocast(device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
            is_meta = device_type == "meta"
            return self._switched(kwargs["enabled"]) if is_meta else autocast(device_type, *args, **kwargs)

        replacements = (
            make_autocast,
            lambda *device: self.compute_dtype is not None if device == ("meta",) else is_enabled(*device),
            lambda device: self.compute_dtype if device == "meta" else get_dtype(device),
        )
        try:
            for name, replacement in zip(names, replacements, strict=True):
                setattr(torch, name, replacement)
            yield
        finally:
            for name, original in zip(names, originals, strict=True):
                setattr(torch, name, original)

    @contextmanager
    def _switched(self, enabled: bool) -> Iterator[None]:
        before = self.compute_dtype
        self.compute_dtype = before if enabled else None
        try:
            yield
        finally:
            self.compute_dtype = before

    def end_autocast(self) -> None:
        """Free the weights in the lower precision; what is computed again afterwards casts them again."""
        self._keeps_casts = False
        self._cast_weights.clear()

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Cast the floating point tensors in a nested value; float64 stays."""

        def cast(tensor: Tensor) -> Tensor:
            is_other = tensor.is_floating_point() and tensor.dtype not in (dtype, torch.float64)
            return self._cast_tensor(tensor, dtype) if is_other else tensor

        return tree_map_only(Tensor, cast, value)

    def _cast_tensor(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Cast once, where autocast keeps the result: weights in the lower precision."""
        is_weight = tensor.is_leaf and tensor.requires_grad and dtype == self.compute_dtype
        if not (is_weight and self._keeps_casts and torch.is_grad_enabled()):
            return tensor.to(dtype)
        if tensor not in self._cast_weights:
            self._cast_weights[tensor] = tensor.to(dtype)
        return self._cast_weights[tensor]


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by a kernel that keeps its inputs, its output and a number a query; a mask is added to the logits."""
    if enable_gqa and query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    bias = None
    if attn_mask is not None:
        bias = attn_mask if attn_mask.is_floating_point() else torch.zeros_like(attn_mask, dtype=query.dtype)
        bias = bias.expand(*query.shape[:2], query.shape[2], key.shape[2])
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, query.requires_grad or key.requires_grad, dropout_p, is_causal, scale=scale
    )[0]
    return out
