"""Packed latents: nothing is lost, and only continuous ones of a causal autoencoder are packed."""

from __future__ import annotations

import pytest
import torch
from factories import randomize, tokenizer

from vwm.core.components import save_component
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.packed_vae import PackedVAE

SETTINGS = {"image_size": (16, 16), "time_compression": 1, "patch_size": 4, "widths": [8], "depths": [1]}


def test_packs_a_trained_autoencoder_without_loss(tmp_path):
    vae = randomize(CausalVAE(latent_channels=4, latents_mean=[0.5] * 4, **SETTINGS)).eval().double()
    save_component(vae, tmp_path / "tokenizer")
    packed = PackedVAE.of(tmp_path, latents=4).double()
    video = torch.rand(2, 9, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, single = packed.encode(video), CausalVAE.encode(packed.vae, video)
    assert latents.shape == (2, 3, 4, 4, 16) and packed.channels == 16 and packed.time_compression == 4
    assert torch.equal(packed.decode(latents), packed.vae.decode(single))
    # The first latent holds the first frame four times, the second one frames 1 to 4.
    assert torch.equal(latents[:, 0], single[:, 0].repeat(1, 1, 1, 4))
    assert torch.equal(latents[:, 1].unflatten(-1, (4, 4)).movedim(3, 1), single[:, 1:5])


def test_rejects_what_cannot_be_packed(tmp_path):
    with pytest.raises(ValueError, match="set codebook=36 to null"):
        PackedVAE({**SETTINGS, "codebook": 36, "latent_channels": 8})
    save_component(tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="holds a SpaceTimeTokenizer: only the latents of a CausalVAE"):
        PackedVAE.of(tmp_path)
    with pytest.raises(ValueError, match="need 1 \\+ 4 k frames"):
        PackedVAE({**SETTINGS, "latent_channels": 4}).encode(torch.zeros(1, 4, 3, 16, 16))
