"""Frozen features of every model family, and of pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import diffusion_world, genie, masked_autoencoder, tokenizer
from torch import Tensor, nn

from vwm.core.components import save_component
from vwm.core.feature_extractor import FeatureExtractor, reinitialized_copy
from vwm.core.frames import frames_to_float
from vwm.eval.features import PixelFeatureExtractor, load_feature_extractor
from vwm.models.dit.features import DiTFeatureExtractor
from vwm.models.genie.features import GenieFeatureExtractor
from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
from vwm.models.vjepa.features import EncoderFeatureExtractor
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.block_outputs import default_probe_layer
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.features import TokenizerFeatureExtractor
from vwm.worlds.bundle import save_simulator


def random_clips(size: int = 16, frames: int = 4, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8, generator=generator)


def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder((16, 16), frames=4, tubelet=2, patch_size=8, width=24, depth=3, heads=2).eval()


def vae() -> CausalVAE:
    torch.manual_seed(0)
    network = CausalVAE((16, 16), latent_channels=4, widths=[8, 8], depths=[1, 1], codebook=[4, 4], patch_size=2)
    return network.eval()


CASES: dict[str, tuple[Callable[[], FeatureExtractor], tuple[int, int]]] = {
    "pixels": (lambda: PixelFeatureExtractor(2, (8, 4)), (16, 192)),
    "V-JEPA": (lambda: EncoderFeatureExtractor(encoder()), (8, 24)),
    "V-JEPA, a layer": (lambda: EncoderFeatureExtractor(encoder(), 1), (8, 24)),
    "convolutions": (lambda: EncoderFeatureExtractor(ConvFrameEncoder((16, 16), [4, 6]).eval()), (4 * 16, 6)),
    "tokens": (lambda: TokenizerFeatureExtractor(tokenizer().eval()), (4 * 16, 16)),
    "tokens of a VAE": (lambda: TokenizerFeatureExtractor(vae()), (2 * 16, 4)),
    "latents": (lambda: TokenizerFeatureExtractor(masked_autoencoder().eval()), (4 * 6, 4)),
    "Genie": (lambda: GenieFeatureExtractor(genie()), (4 * 16, 16)),
    "labeled Genie": (lambda: GenieFeatureExtractor(genie(labeled=True), 0), (4 * 16, 16)),
    "DiT": (lambda: DiTFeatureExtractor(diffusion_world()), (4 * 16, 32)),
    "DiT with agent tokens": (lambda: DiTFeatureExtractor(diffusion_world(agent_tokens=2, policy=True)), (4 * 16, 32)),
}


def suitable_clips(features: FeatureExtractor, count: int = 5) -> Tensor:
    size = 8 if isinstance(features, DiTFeatureExtractor) else 16
    return random_clips(size, features.frames, count)


@pytest.mark.parametrize("case", CASES)
def test_features_are_tokens_and_do_not_depend_on_the_batch(case: str) -> None:
    make, shape = CASES[case]
    features = make()
    frames = suitable_clips(features)
    tokens = features(frames)
    assert tokens.shape == (5, *shape) and tokens.dtype == torch.float32 and tokens.isfinite().all()
    assert tokens.flatten(1).std(dim=0).max() > 1e-3  # they differ between clips
    alone = torch.cat([features(frames[i : i + 1]) for i in (3, 1)])
    torch.testing.assert_close(tokens[[3, 1]], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(features(frames), tokens, rtol=0, atol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("pixels",)])
def test_a_reinitialized_extractor_has_equal_shapes_and_other_weights(case: str) -> None:
    features = CASES[case][0]()
    before = {name: w.clone() for part in features.networks.values() for name, w in part.state_dict().items()}
    first, same_seed, other_seed = features.reinitialized(1), features.reinitialized(1), features.reinitialized(2)
    frames = suitable_clips(features)
    assert (
        type(first) is type(features)
        and first.layer == features.layer
        and first.networks.keys() == features.networks.keys()
    )
    torch.testing.assert_close(first(frames), same_seed(frames), rtol=0, atol=0)
    assert first(frames).shape == features(frames).shape
    assert not torch.equal(first(frames), features(frames)) and not torch.equal(first(frames), other_seed(frames))
    after = {name: w for part in features.networks.values() for name, w in part.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_reinitialized_network_is_frozen_and_leaves_the_torch_generator_unchanged() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    copied = reinitialized_copy(encoder(), 5)
    torch.manual_seed(1)
    reinitialized_copy(encoder(), 5)
    torch.manual_seed(1)
    copied = reinitialized_copy(copied, 5)
    assert torch.equal(torch.rand(3), expected)
    assert not copied.training and not any(p.requires_grad for p in copied.parameters())


def test_features_of_an_encoder_layer_equal_its_layer_outputs() -> None:
    network, frames = encoder(), random_clips()
    with torch.no_grad():
        last, (first,) = network(frames_to_float(frames)), network.layer_features(frames_to_float(frames), [0])
    torch.testing.assert_close(EncoderFeatureExtractor(network)(frames), last, rtol=0, atol=1e-6)
    torch.testing.assert_close(EncoderFeatureExtractor(network).with_layer(0)(frames), first, rtol=0, atol=1e-6)
    torch.testing.assert_close(EncoderFeatureExtractor(network, -1)(frames), last, rtol=0, atol=1e-6)
    assert EncoderFeatureExtractor(network, -1).layer == 2 and EncoderFeatureExtractor(network).frames == 4


def test_features_of_a_world_equal_its_block_outputs_during_play() -> None:
    """The last layer of Genie's dynamics, normalized and passed to the head, gives the logits of play."""
    world, frames = genie(), random_clips()
    features = GenieFeatureExtractor(world, -1)(frames)
    tokens = world.tokenizer.encode(frames_to_float(frames)).flatten(2)
    actions = world.latent_action.infer(frames_to_float(frames)).actions
    dynamics = world.dynamics
    with torch.no_grad():
        state = dynamics.observe(
            dynamics.init_state(5), tokens[:, :3], torch.cat((actions[:, :1], actions[:, :2]), dim=1)
        )
        state = dynamics.init_state(5)
        state = dynamics.observe(state, tokens[:, :1], None)
        state = dynamics.observe(state, tokens[:, 1:3], actions[:, :2])
        expected = dynamics.predict_logits(state, tokens[:, 3:], actions[:, 2:])
        actual = dynamics.head(dynamics.transformer.norm(features.unflatten(1, (4, 16))[:, 3:]))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_features_of_a_frame_do_not_depend_on_later_frames() -> None:
    for features in (GenieFeatureExtractor(genie(), 1), DiTFeatureExtractor(diffusion_world(), 2)):
        frames = suitable_clips(features)
        changed = frames.clone()
        changed[:, -1] = 255 - changed[:, -1]
        original, modified = (features(f).unflatten(1, (4, -1)) for f in (frames, changed))
        torch.testing.assert_close(original[:, :3], modified[:, :3], rtol=0, atol=1e-6)
        assert not torch.allclose(original[:, 3], modified[:, 3], atol=1e-3)


def test_forward_hooks_are_removed() -> None:
    features = DiTFeatureExtractor(diffusion_world())
    features(suitable_clips(features))
    blocks: nn.ModuleList = features.networks["dynamics"].transformer.blocks
    assert not any(block._forward_hooks for block in blocks)


@pytest.mark.parametrize(
    ("tokens", "patch"),
    [(256, (1, 8, 8)), (64, (1, 16, 16)), (32, (2, 16, 16)), (4, (1, 64, 64)), (100_000, (1, 1, 1))],
)
def test_pixel_features_match_the_number_of_tokens(tokens: int, patch: tuple[int, int, int]) -> None:
    pixels = PixelFeatureExtractor.matching(tokens, 4, (64, 64))
    features = pixels(random_clips(64, count=1))
    if tokens < 10_000:
        assert features.shape[1] == tokens
    assert features.shape[1] * features.shape[2] == 4 * 64 * 64 * 3
    assert (pixels.tubelet * pixels.patch_size[0] * pixels.patch_size[1]) == patch[0] * patch[1] * patch[2]


def test_pixel_features_contain_the_pixels_of_each_patch() -> None:
    frames = random_clips(8, count=2)
    features = PixelFeatureExtractor(2, (4, 4))(frames).view(2, 2, 2, 2, 2, 4, 4, 3)
    assert torch.equal(features[1, 1, 0, 1, 0], frames_to_float(frames)[1, 2, :, :4, 4:].permute(1, 2, 0))


def test_the_extractor_is_selected_by_the_content_of_the_folder(tmp_path: Path) -> None:
    save_component(encoder(), tmp_path / "vjepa" / "encoder")
    save_component(tokenizer(), tmp_path / "tokenizer")
    save_simulator(genie(), tmp_path / "genie")
    save_simulator(diffusion_world(), tmp_path / "dit")
    extractor_classes = {
        "vjepa": EncoderFeatureExtractor,
        "tokenizer": TokenizerFeatureExtractor,
        "genie": GenieFeatureExtractor,
        "dit": DiTFeatureExtractor,
    }
    for name, extractor_class in extractor_classes.items():
        features = load_feature_extractor(tmp_path / name)
        assert type(features) is extractor_class
        assert features(suitable_clips(features, 1)).isfinite().all()
    assert load_feature_extractor(tmp_path / "dit").layer == 2 == default_probe_layer(4)
    assert type(load_feature_extractor("coinrun")) is GenieFeatureExtractor  # a shipped bundle
    torch.testing.assert_close(
        load_feature_extractor(tmp_path / "vjepa")(random_clips()), EncoderFeatureExtractor(encoder())(random_clips())
    )


def test_rejects_missing_folders_and_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to probe.*vwm export"):
        load_feature_extractor(tmp_path)
    save_component(tokenizer(), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"layer=1.*no layers to choose from"):
        load_feature_extractor(tmp_path / "tokenizer", 1)
    with pytest.raises(ValueError, match=r"layer=3.*layers 0\.\.2"):
        EncoderFeatureExtractor(encoder(), 3)
    with pytest.raises(ValueError, match="frames of 16x16 pixels, but the data have 8x8"):
        EncoderFeatureExtractor(encoder())(random_clips(8))
    (tmp_path / "tokenizer" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_feature_extractor(tmp_path / "tokenizer")
