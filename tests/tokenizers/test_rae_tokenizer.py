"""diffusers' AutoencoderRAE behind the interface of tokenizers: see also ``test_contract.py``."""

from __future__ import annotations

import pytest
import torch
from published_video_vaes import rae_vae

from vwm.tokenizers.loading import load_tokenizer
from vwm.tokenizers.rae_tokenizer import RAETokenizer

pytest.importorskip("transformers")


def clip() -> torch.Tensor:
    return torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"encoder_type": "mae"}, {"reshape_to_2d": False}])
def test_results_equal_those_of_the_original(changes, tmp_path):
    if "reshape_to_2d" in changes:  # its statistics are of tokens then
        changes = changes | {"latents_mean": [0.5] * 64, "latents_std": [2.0] * 64}
    vae = rae_vae(**changes)
    pixels = (clip().flatten(0, 1) + 1) / 2
    z = vae.encode(pixels).latent
    decoded = vae.decode(z).sample
    vae.save_pretrained(tmp_path / "vae")
    tokenizer = load_tokenizer(tmp_path / "vae", image_size=(16, 16))
    assert isinstance(tokenizer, RAETokenizer) and not any(p.requires_grad for p in tokenizer.parameters())
    latents = tokenizer.encode(clip())
    assert latents.shape == (2, 3, 4, 4, 64)
    tokens = z.flatten(2).transpose(1, 2) if z.ndim == 4 else z
    torch.testing.assert_close(latents.flatten(0, 1).flatten(1, 2), tokens)
    torch.testing.assert_close((tokenizer.decode(latents).flatten(0, 1) + 1) / 2, decoded)


def test_other_frames_are_refused():
    with pytest.raises(ValueError, match=r"image_size=\[32, 32\]: this AutoencoderRAE has \[16, 16\]"):
        RAETokenizer.from_vae(rae_vae(), image_size=(32, 32))
    with pytest.raises(ValueError, match=r"grid=\[8, 8\]: this AutoencoderRAE has \[4, 4\]"):
        RAETokenizer.from_vae(rae_vae(), grid=(8, 8))
