"""Oasis's published files: strict names and shapes."""

import re
from pathlib import Path

import pytest
import torch
from published_worlds import OASIS_IMAGE, oasis_layout, oasis_networks
from safetensors.torch import save_file

from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.oasis.network import OasisDiT
from vwm.models.oasis.published import load_oasis
from vwm.models.oasis.vit_vae import OasisViTVAE

LINEAR = ("weight", "bias")
AXIS = (
    *("attn.to_qkv.weight", "attn.to_out.weight", "attn.to_out.bias", "mlp.fc1.weight", "mlp.fc1.bias"),
    *("mlp.fc2.weight", "mlp.fc2.bias", "adaLN_modulation.1.weight", "adaLN_modulation.1.bias"),
)
VIT = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def test_the_networks_have_the_published_names_and_sizes():
    """Names by the rule of the published classes, counts of their instances."""
    with torch.device("meta"):
        dynamics, tokenizer = OasisDiT(), OasisViTVAE()
    names = {f"blocks.{block}.{axis}_{name}" for block in range(16) for axis in "st" for name in AXIS}
    for part in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "external_cond", "final_layer.linear"):
        names |= {f"{part}.{kind}" for kind in LINEAR}
    names |= {f"final_layer.adaLN_modulation.1.{kind}" for kind in LINEAR}
    assert set(dynamics.state_dict()) == names
    parts = [f"encoder.{block}.{part}" for block in range(6) for part in VIT]
    parts += [f"decoder.{block}.{part}" for block in range(12) for part in VIT]
    parts += ["patch_embed.proj", "enc_norm", "quant_conv", "post_quant_conv", "dec_norm", "predictor"]
    assert set(tokenizer.state_dict()) == {f"{part}.{kind}" for part in parts for kind in LINEAR}
    counts = [sum(weight.numel() for weight in network.parameters()) for network in (dynamics, tokenizer)]
    assert counts == [607_943_744, 229_246_160]
    shapes = {name: tuple(weight.shape) for name, weight in dynamics.state_dict().items()}
    assert shapes["x_embedder.proj.weight"] == (1024, 16, 2, 2) and shapes["external_cond.weight"] == (1024, 25)
    assert shapes["blocks.15.t_attn.to_qkv.weight"] == (3072, 1024)
    assert tokenizer.predictor.weight.shape == (1200, 1024) and tokenizer.quant_conv.weight.shape == (32, 1024)


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_published_files_load_to_equal_networks(form: str, tmp_path: Path):
    tokenizer, dynamics = oasis_networks()
    autoencoder, transformer = oasis_layout(tokenizer, dynamics)
    if form == "pt":
        torch.save(autoencoder, tmp_path / "vit-l-20.pt")
        torch.save(transformer, tmp_path / "oasis500m.pt")
    else:  # which stores a shared tensor once, under the first of its names
        kept = {key: value for key, value in transformer.items() if "freqs" not in key or "blocks.0" in key}
        save_file(autoencoder, tmp_path / "vit-l-20.safetensors")
        save_file(kept, tmp_path / "oasis500m.safetensors")
    loaded, network = load_oasis(tmp_path, OASIS_IMAGE)
    video, latents = torch.rand(1, 2, 3, *OASIS_IMAGE), torch.randn(1, 3, 4, 8, 4)
    level, actions = torch.tensor([[14, 14, 700]]), torch.rand(1, 3, 25)
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))
    assert torch.equal(network(latents, level, actions), dynamics(latents, level, actions))
    assert (network.window, loaded.latent_scale) == (32, 0.07843137255)


def test_what_is_wrong_with_the_files_is_named(tmp_path: Path):
    autoencoder, transformer = oasis_layout(*oasis_networks())
    with pytest.raises(PretrainedWeightsError, match=r"no vit-l-20\.safetensors or vit-l-20\.pt: download"):
        load_oasis(tmp_path, OASIS_IMAGE)
    torch.save(autoencoder, tmp_path / "vit-l-20.pt")

    def message(changes: dict[str, torch.Tensor], left_out: str = "") -> str:
        changed = {key: value for key, value in {**transformer, **changes}.items() if key != left_out}
        torch.save(changed, tmp_path / "oasis500m.pt")
        with pytest.raises(PretrainedWeightsError, match=re.escape(str(tmp_path / "oasis500m.pt"))) as caught:
            load_oasis(tmp_path, OASIS_IMAGE)
        return str(caught.value)

    assert "missing: blocks.1.t_attn.to_qkv.weight" in message({}, "blocks.1.t_attn.to_qkv.weight")
    assert "missing: external_cond.weight" in message({}, "external_cond.weight")
    assert "not used: vae.weight" in message({"vae.weight": torch.zeros(1)})
    assert "t_embedder.mlp.2.bias [3] instead of [16]" in message({"t_embedder.mlp.2.bias": torch.zeros(3)})
    frequencies = "blocks.1.s_attn.rotary_emb.freqs"
    assert f"{frequencies} does not hold" in message({frequencies: 2 * transformer[frequencies]})
