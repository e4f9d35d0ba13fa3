"""Tokenizers from disk: found where they may lie, and what is none is named."""

import pytest
import torch
from factories import dynamics, tokenizer

from vwm.core.components import ComponentError, save_component
from vwm.tokenizers.loading import load_tokenizer


def test_a_tokenizer_is_found_in_its_folder_and_in_a_bundle(tmp_path):
    network = tokenizer().eval()
    save_component(network, tmp_path / "tokenizer")
    video = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for folder in (tmp_path, tmp_path / "tokenizer"):
        again = load_tokenizer(folder)
        assert torch.equal(again.encode(video), network.encode(video))
        assert not any(p.requires_grad for p in again.parameters()) and not again.training


def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="vwm export"):
        load_tokenizer(tmp_path)
    save_component(dynamics(), tmp_path / "dynamics")
    with pytest.raises(ComponentError, match="MaskGITDynamics, which is no tokenizer"):
        load_tokenizer(tmp_path / "dynamics")
    (tmp_path / "dynamics" / "config.json").write_text("{")
    with pytest.raises(ComponentError, match="not JSON"):
        load_tokenizer(tmp_path / "dynamics")
