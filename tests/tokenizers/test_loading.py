"""Loading of tokenizers from their own folders and from bundles, and errors for other folders."""

import pytest
import torch
from factories import dynamics, tokenizer

from vwm.core.components import ComponentError, save_component
from vwm.tokenizers.loading import load_tokenizer


def test_a_tokenizer_is_loaded_from_its_folder_and_from_a_bundle(tmp_path):
    network = tokenizer().eval()
    save_component(network, tmp_path / "tokenizer")
    video = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for folder in (tmp_path, tmp_path / "tokenizer"):
        loaded = load_tokenizer(folder)
        assert torch.equal(loaded.encode(video), network.encode(video))
        assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training


def test_rejects_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="vwm export"):
        load_tokenizer(tmp_path)
    save_component(dynamics(), tmp_path / "dynamics")
    with pytest.raises(ComponentError, match="MaskGITDynamics, which is no tokenizer"):
        load_tokenizer(tmp_path / "dynamics")
    (tmp_path / "dynamics" / "config.json").write_text("{")
    with pytest.raises(ComponentError, match="not JSON"):
        load_tokenizer(tmp_path / "dynamics")


def test_the_tokenizer_of_a_shipped_world_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("carracing").image_size == (64, 64)
    with pytest.raises(FileNotFoundError, match="did you mean carracing"):
        load_tokenizer("carracin")
