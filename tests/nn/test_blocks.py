"""Compiled blocks: they can be traced as one graph each, compute what plain ones do, and keep their weights' names."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from factories import dit, masked_autoencoder, randomize, tokenizer
from torch import Tensor, nn
from torch._dynamo.utils import counters

from vwm.core.blocks import compile_blocks, find_blocks, uncompiled_blocks
from vwm.models.dit.network import DiT, NoisyFrames
from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
from vwm.models.vjepa.frame_causal_vit import FrameCausalViT
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.recomputation import recompute_blocks
from vwm.nn.space_time import SpaceTimeTransformer
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.frame_vae import FrameVAE

# torch's own compiler asks for the gradients of its inputs.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def clip(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).tanh()


def run_dit(network: DiT) -> Tensor:
    actions = torch.zeros(2, 4, dtype=torch.int64)
    frames = NoisyFrames(
        clip(2, 5, 4, 4, 3), torch.full((2, 5), 0.5), None, network.embed_previous_actions(actions, 2, 5)
    )
    return network(frames).prediction


def run_tokenizer(network: nn.Module) -> Tensor:
    torch.manual_seed(2)
    return network(clip(2, 5, 3, 16, 16)).video


def run_encoder(network: nn.Module) -> Tensor:
    return network(clip(2, 4, 3, 16, 16))


def run_predictor(network: MaskedPredictor) -> Tensor:
    indices = torch.arange(8).expand(2, -1)
    return network(clip(2, 5, 32), indices[:, :5], indices[:, 5:])


VIT = {"width": 32, "depth": 2, "heads": 2, "image_size": (16, 16), "frames": 4, "patch_size": 8, "tubelet": 2}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "space_time_tokenizer": (tokenizer, run_tokenizer),
    "masked_autoencoder": (masked_autoencoder, run_tokenizer),
    "causal_vae": (lambda: CausalVAE((16, 16), 4, patch_size=2, widths=[8, 8], depths=[1, 1]), run_tokenizer),
    "frame_vae": (lambda: FrameVAE((16, 16), latent_size=6, widths=[8, 8]), run_tokenizer),
    "dit": (dit, run_dit),
    "dit_full_with_sinks": (lambda: dit(attention="full", registers=0, sink_frames=1, soft_cap=30.0), run_dit),
    "vjepa_encoder": (lambda: VideoEncoder(**VIT), run_encoder),
    "vjepa_predictor": (lambda: MaskedPredictor(encoder_width=32, num_mask_tokens=1, **VIT), run_predictor),
    "vjepa_conv_encoder": (lambda: ConvFrameEncoder((16, 16), [8, 8]), run_encoder),
    "vjepa_ac": (
        lambda: FrameCausalViT(width=16, depth=2, heads=2, window=4, mlp="gelu", tiled_rope=False),
        lambda network: network(clip(2, 4, 6, 16), clip(6, 2)),
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_is_one_graph(name):
    """A graph break would be an error (``fullgraph``)."""
    make, run = NETWORKS[name]
    network = randomize(make()).train()
    compiled = copy.deepcopy(network)
    assert list(find_blocks(compiled))
    compile_blocks(compiled, backend="eager", fullgraph=True)
    counters.clear()
    torch.testing.assert_close(run(compiled), run(network))
    assert counters["stats"]["unique_graphs"] > 0
    assert list(compiled.state_dict()) == list(network.state_dict())


@pytest.mark.parametrize(("backend", "depth"), [("inductor", 1), ("aot_eager", 3)])
def test_compiled_blocks_have_the_gradients_of_plain_ones_and_share_their_code(backend, depth):
    """Also with recomputation inside; one block is enough for the slower compiler."""
    torch.manual_seed(0)
    network = randomize(SpaceTimeTransformer(width=8, depth=depth, heads=1, window=2)).train()
    compiled = copy.deepcopy(network)
    recompute_blocks(compiled, "none" if backend == "inductor" else "selective")
    compile_blocks(compiled, backend, fullgraph=True)
    counters.clear()
    for part in (network, compiled):
        part(clip(1, 3, 2, 8)).square().sum().backward()
    for expected, found in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2  # with and without a gradient for the input


def test_blocks_run_uncompiled_inside_the_context():
    network = randomize(SpaceTimeTransformer(width=8, depth=2, heads=1, window=2))
    compile_blocks(network, backend="eager")
    counters.clear()
    with uncompiled_blocks(network):
        network(clip(1, 3, 2, 8))
    assert not counters["stats"]
    network(clip(1, 3, 2, 8))
    assert counters["stats"]["unique_graphs"] > 0
