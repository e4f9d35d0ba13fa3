"""A codec of frozen features: its encoder is that of the file and stays so, and its decoder learns.

``test_contract.py`` compares its streams with whole clips.
"""

from __future__ import annotations

import json

import pytest
import timm
import torch
from factories import randomize, representation_codec
from torch import Tensor, nn

from vwm.core.components import ComponentError, load_component, save_component
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.module import TokenizerModule
from vwm.tokenizers.representation_codec import RepresentationCodec
from vwm.tokenizers.timm_encoder import TimmEncoder

DINOV2, DINOV3 = "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
DECODER = {"width": 16, "depth": 2, "heads": 2, "time_every": 2}


def frames() -> Tensor:
    return torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def clip() -> Tensor:
    return frames().permute(0, 1, 4, 2, 3) / 127.5 - 1


def published(backbone: str, file) -> nn.Module:
    """Write the weights of a small network as timm publishes them."""
    torch.manual_seed(0)
    network = timm.create_model(backbone, num_classes=0, **SMALL).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), file)
    return network


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "side", "grid", "prefix"), [(DINOV2, 518, 37, 1), (DINOV3, 256, 16, 5)])
def test_features_are_those_of_the_published_network(backbone, side, grid, prefix, tmp_path):
    network = published(backbone, tmp_path / "model.pth")
    encoder = TimmEncoder.from_file(backbone, tmp_path / "model.pth", (side, side), (grid, grid), SMALL)
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network.forward_features((pixels - mean[:, None, None]) / std[:, None, None])[:, prefix:]
    torch.testing.assert_close(encoder(pixels[:, None] * 2 - 1), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1 and not any(p.requires_grad for p in encoder.parameters())


def test_wrong_backbones_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="backbone='resnet18' is no vision transformer with patches"):
        TimmEncoder("resnet18")
    with pytest.raises(ValueError, match="backbone='vit_tinny': timm has no such model"):
        TimmEncoder("vit_tinny")
    with pytest.raises(FileNotFoundError, match=r"there is no .*model\.pth"):
        TimmEncoder.from_file(DINOV2, tmp_path / "model.pth", (16, 16), (4, 4), SMALL)
    published(DINOV3, tmp_path / "other.pth")
    with pytest.raises(ComponentError, match=r"other\.pth: no weights of timm's vit_small_patch14_dinov2"):
        TimmEncoder.from_file(DINOV2, tmp_path / "other.pth", (16, 16), (4, 4), SMALL)
    with pytest.raises(ValueError, match=r"video must be \[n, 1, 3, 16, 16\]"):
        TimmEncoder(DINOV2, (16, 16), (4, 4), SMALL)(torch.zeros(1, 1, 3, 8, 16))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timm", "vjepa"])
def test_the_folder_of_the_encoder_is_not_needed_after_training(kind, tmp_path):
    torch.manual_seed(0)
    vjepa = VideoEncoder((16, 16), 4, tubelet=2, patch_size=4, width=16, depth=1, heads=2)
    encoder = randomize(vjepa if kind == "vjepa" else TimmEncoder(DINOV2, (16, 16), (4, 4), SMALL)).eval()
    save_component(encoder, tmp_path / "export" / "encoder")
    codec = RepresentationCodec(str(tmp_path / "export"), **DECODER).eval()
    features = encoder(clip().flatten(0, 1)[:, None]).unflatten(0, (2, 5))
    torch.testing.assert_close(
        codec.encode(clip()).flatten(2, 3), nn.functional.layer_norm(features, features.shape[3:])
    )
    save_component(codec, tmp_path / "codec")
    settings = json.loads((tmp_path / "codec" / "config.json").read_text())
    assert str(tmp_path) not in str(settings) and settings["encoder"] is None
    for file in (tmp_path / "export" / "encoder").iterdir():
        file.unlink()
    assert torch.equal(load_component(tmp_path / "codec").encode(clip()), codec.encode(clip()))


def test_training_changes_the_decoder_only():
    codec = representation_codec()
    module = TokenizerModule(codec, OptimizerConfig(warmup=1, lr=1e-2)).train()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    optimizer = torch.optim.Adam((p for p in module.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(20):
        loss, _ = module(ClipBatch(frames()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and not codec.representation.training
    for name, value in codec.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("representation.")


@torch.no_grad()
def test_noise_is_added_in_training_only():
    codec = representation_codec(noise=0.8)
    latents = codec.encode(clip())
    assert torch.equal(codec.eval()(clip()).video, codec.decode(latents))
    out = codec.train()(clip())
    assert torch.equal(out.latents, latents) and not torch.equal(out.video, codec.decode(latents))


@torch.no_grad()
def test_normalization_of_latents_does_not_change_the_reconstruction():
    codec = representation_codec().double().eval()
    before = codec(clip().double()).video
    measure_latent_statistics(codec, [frames()])
    latents = codec.encode(clip().double())
    assert latents.mean().abs() < 1e-6 and abs(latents.std() - 1) < 1e-2
    torch.testing.assert_close(codec.decode(latents), before)


def test_encoders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give either encoder or encoder_class, got None and None"):
        RepresentationCodec()
    with pytest.raises(ComponentError, match=r"no encoder at .*: it has no encoder/config\.json; make one with tools/"):
        RepresentationCodec(str(tmp_path))
    save_component(representation_codec(), tmp_path / "codec")
    with pytest.raises(ComponentError, match="RepresentationCodec, which is no encoder of frames: no spatial_grid"):
        RepresentationCodec(str(tmp_path / "codec"))
    with pytest.raises(ValueError, match=r"a grid of \[4, 2\] does not divide frames of \[16, 16\] into squares"):
        representation_codec(settings={"image_size": (16, 16), "grid": (4, 2), "settings": SMALL})
    with pytest.raises(ComponentError, match=r"encoder_class names os\.path"):
        representation_codec("os.path")
