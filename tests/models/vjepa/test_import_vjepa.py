"""tools/import_vjepa.py: import from Hugging Face's layout and official files, and export."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from vjepa_models import encoder, enlarge, predictor, published_weights

from vwm.core.components import load_component, save_component
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.hugging_face import save_hugging_face_vjepa

SPEC = importlib.util.spec_from_file_location("import_vjepa", Path(__file__).parents[3] / "tools" / "import_vjepa.py")
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
SETTINGS = {"image_size": (16, 16), "tiled_rope": True}


@pytest.fixture
def published(tmp_path):
    probe = enlarge(AttentiveClassifier(48, 5, heads=4, depth=2, norm_eps=1e-6))
    networks = (encoder(**SETTINGS), predictor(**SETTINGS), probe)
    save_hugging_face_vjepa(tmp_path / "published", *(network.float() for network in networks))
    return tmp_path / "published"


def test_imported_networks_can_be_loaded_and_are_exported_with_equal_weights(published, tmp_path, capsys):
    tool.main([str(published), str(tmp_path / "imported")])
    assert "VideoEncoder of 0.1M parameters" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "imported").iterdir()) == ["classifier", "encoder", "predictor"]
    video = torch.randn(1, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert load_component(tmp_path / "imported" / "encoder")(video).shape == (1, 16, 48)
    tool.main([str(tmp_path / "imported"), str(tmp_path / "exported"), "--to-hf"])
    original, exported = (load_file(folder / "model.safetensors") for folder in (published, tmp_path / "exported"))
    assert original.keys() == exported.keys() and all(torch.equal(original[key], exported[key]) for key in original)


def test_an_official_file_is_imported_with_the_settings_given_as_options(tmp_path):
    weights = {f"module.{key}": weight for key, weight in encoder(**SETTINGS).float().state_dict().items()}
    torch.save({"target_encoder": weights}, tmp_path / "vjepa2.pt")
    options = ["--image-size", "16", "--frames", "8", "--heads", "4"]
    tool.main([str(tmp_path / "vjepa2.pt"), str(tmp_path / "imported"), *options])
    config = load_component(tmp_path / "imported" / "encoder").config
    assert (tuple(config.image_size), config.frames, config.heads, config.tiled_rope) == ((16, 16), 8, 4, True)


def test_the_published_action_conditioned_predictor_is_imported(tmp_path, capsys):
    encoder_weights = encoder(**SETTINGS).float().state_dict()
    torch.save({"target_encoder": encoder_weights, "predictor": published_weights()}, tmp_path / "ac.pt")
    options = ["--image-size", "16", "--frames", "8", "--heads", "4", "--predictor-heads", "2"]
    tool.main([str(tmp_path / "ac.pt"), str(tmp_path / "imported"), *options])
    assert "VideoEncoder of 0.1M parameters, ActionConditionedPredictor of 0.1M" in capsys.readouterr().out
    config = load_component(tmp_path / "imported" / "dynamics").config
    assert (config.layers, config.action_dims, config.window, config.tiled_rope) == ("vit", 7, 4, True)
    with pytest.raises(SystemExit, match=r"has encoder and predictor, .* found .* dynamics"):
        tool.main([str(tmp_path / "imported"), str(tmp_path / "out"), "--to-hf"])


def test_errors_are_one_line_and_nothing_is_written(published, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*exists: choose another folder"):
        tool.main([str(published), str(published)])
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    with pytest.raises(SystemExit, match=r"error: .*broken\.pt: cannot be read"):
        tool.main([str(tmp_path / "broken.pt"), str(tmp_path / "out")])
    save_component(encoder(**SETTINGS).float(), tmp_path / "imported" / "encoder")
    with pytest.raises(SystemExit, match="has encoder and predictor"):
        tool.main([str(tmp_path / "imported"), str(tmp_path / "out"), "--to-hf"])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.tmp"))
