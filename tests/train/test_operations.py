"""Operations of a training step: equal to a count by hand, whatever computes them, and without effects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from factories import dit, randomize
from torch import Tensor, nn

from vwm.data.clips import ClipBatch
from vwm.models.dit.module import DiTModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MultiBlockMaskSampler
from vwm.models.vjepa.module import VJEPAModule
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.attention_kernels import choose_kernel, without_packing
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.recomputation import recompute_blocks
from vwm.nn.space_time import SpaceTimeTransformer
from vwm.nn.training_module import TrainingModule
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.train.operations import count_operations, find_peak_teraflops

CLIPS, FRAMES, TOKENS, WIDTH, DEPTH, HEADS = 5, 4, 6, 16, 3, 2


class Embedded(TrainingModule):
    """A linear layer of pixels and a transformer; its buffer counts calls, and its loss draws a number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.transformer = randomize(SpaceTimeTransformer(WIDTH, DEPTH, HEADS, window=FRAMES))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        x = self.embed(batch.frames.to(self.embed.weight) / 255).flatten(2, 3)
        return (self.transformer(x) + torch.rand(())).square().mean(), {}

    def networks(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def sample(self, batch: Any) -> Tensor:
        return batch.frames


def clips(height: int = 2, width: int = 3) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (CLIPS, FRAMES, height, width, 3), dtype=torch.uint8, generator=generator)
    return ClipBatch(frames=frames, seed=torch.arange(CLIPS))


def by_hand() -> int:
    rows = CLIPS * FRAMES * TOKENS
    layer = 2 * rows * (2 * 4 + 2 * 4) * WIDTH**2  # two attentions of four matrices, and a feed-forward
    pairs = CLIPS * (FRAMES * TOKENS**2 + TOKENS * FRAMES**2)
    layer += 2 * 2 * pairs * WIDTH
    return 3 * DEPTH * layer + 2 * 2 * rows * 3 * WIDTH  # pixels have no gradient


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_the_count_equals_one_by_hand_without_what_is_computed_again(recomputation):
    module = Embedded().train()
    recompute_blocks(module, recomputation)
    assert count_operations(module, clips()) == by_hand()


def test_counting_changes_neither_gradients_nor_buffers_nor_random_numbers():
    module = Embedded().train()
    gradient = torch.ones_like(module.embed.weight)
    module.embed.weight.grad = gradient.clone()
    before = torch.get_rng_state()
    count_operations(module, clips())
    assert torch.equal(torch.get_rng_state(), before) and module.calls == 0
    assert torch.equal(module.embed.weight.grad, gradient)
    assert all(p.grad is None for p in module.transformer.parameters())


def test_frozen_weights_have_no_gradient_to_count():
    module = Embedded().train()
    module.transformer.requires_grad_(False)
    rows, all_operations = CLIPS * FRAMES * TOKENS, by_hand()
    assert count_operations(module, clips()) == all_operations - DEPTH * 2 * rows * 16 * WIDTH**2


def test_torchs_attention_counts_as_the_formula():
    class Attention(Embedded):
        def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
            x = self.embed(batch.frames.to(self.embed.weight)).flatten(2, 3)[:, None].flatten(2, 3)
            return F.scaled_dot_product_attention(x, x, x).mean(), {}

    rows = CLIPS * FRAMES * TOKENS
    attention = 4 * CLIPS * (FRAMES * TOKENS) ** 2 * WIDTH
    assert count_operations(Attention(), clips()) == 3 * attention + 2 * 2 * rows * 3 * WIDTH


def test_packed_sequences_are_not_counted():
    """Most products of a pack are masked."""
    assert choose_kernel("cuda", 8, 8) == "packed"
    with without_packing():
        assert choose_kernel("cuda", 8, 8) == "fused"
    assert choose_kernel("cuda", 8, 8) == "packed"


def vjepa() -> VJEPAModule:
    torch.manual_seed(0)
    shared = {"image_size": (16, 16), "frames": FRAMES, "patch_size": 8, "tubelet": 2, "heads": 2}
    return VJEPAModule(
        encoder=VideoEncoder(width=32, depth=2, **shared),
        predictor=MaskedPredictor(encoder_width=32, width=16, depth=1, **shared),
        mask_samplers=[MultiBlockMaskSampler(num_blocks=1, spatial_scale=(0.5, 0.5))],
        optimizer=OptimizerConfig(lr=1e-3),
    )


def test_onednns_products_count_as_others():
    """Masked batches hold lists of indices; in float64, torch multiplies by itself."""
    module = vjepa().train()
    batch = module.sample_masks(clips(16, 16))
    assert module.count_tokens(batch) == CLIPS * 8
    counted = count_operations(module, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert count_operations(module, batch) == counted > 0


def test_a_dit_counts_its_patches_as_tokens():
    network = dit(registers=1)
    module = DiTModule(
        PixelTokenizer((4, 4)), network, DiffusionForcing(), OptimizerConfig(lr=1e-3), context="noisy"
    ).train()
    batch = clips(4, 4)
    batch.actions = torch.zeros(CLIPS, FRAMES, dtype=torch.int64)
    assert module.count_tokens(batch) == CLIPS * FRAMES * (1 + 16 // network.config.patch_size**2)
    assert count_operations(module, batch) > 6 * sum(p.numel() for p in network.transformer.blocks[0].mlp.parameters())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H200", 989.0), ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A10G", None), ("NVIDIA L40S", 362.0), ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.0), ("Tesla T4", None),
    ],
)  # fmt: skip
def test_peaks_are_found_by_whole_names(name, peak):
    assert find_peak_teraflops(name) == peak
