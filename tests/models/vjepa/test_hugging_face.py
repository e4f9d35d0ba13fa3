"""Hugging Face's layout: loaded and saved networks equal transformers' to 1e-10 in float64."""

import json
import re
from pathlib import Path

import pytest
import torch
from factories import randomize
from safetensors.torch import load_file, save_file
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model
from vjepa_models import enlarge, random, tokens

from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.hugging_face import load_hugging_face_vjepa, save_hugging_face_vjepa
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.runs.config_files import load_config

SIZES = {
    "crop_size": 24, "patch_size": 8, "frames_per_clip": 6, "tubelet_size": 2, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2.5, "num_pooler_layers": 2,
    "pred_hidden_size": 24, "pred_num_hidden_layers": 2, "pred_num_attention_heads": 2, "pred_num_mask_tokens": 3,
}  # fmt: skip
TOKENS = 27
MEAN, STD = (
    torch.tensor(values, dtype=torch.float64)[:, None, None]
    for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders as transformers writes them, of the bare model and of the one with a classifier."""
    folder = tmp_path_factory.mktemp("published")
    for name, kind, extra in (
        ("model", VJEPA2Model, {}),
        ("classifier", VJEPA2ForVideoClassification, {"num_labels": 5}),
    ):
        torch.manual_seed(0)
        enlarge(kind(VJEPA2Config(**SIZES, **extra))).save_pretrained(folder / name)
    return folder


def make_video() -> torch.Tensor:
    return random(2, 6, 3, 24, 24).tanh()


def normalize(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) / 2 - MEAN) / STD


@torch.no_grad()
def test_loaded_encoder_and_predictor_equal_transformers(folders):
    reference = VJEPA2Model.from_pretrained(folders / "model", dtype=torch.float64).eval()
    encoder, predictor, classifier, _ = load_hugging_face_vjepa(folders / "model")
    keep, targets = tokens(2, TOKENS, 10, 8)
    output = reference(normalize(make_video()), context_mask=[keep], target_mask=[targets])
    features = encoder(make_video())
    context = features.gather(1, keep[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(features, output.last_hidden_state, rtol=0, atol=1e-10)
    predicted = output.predictor_output.last_hidden_state
    torch.testing.assert_close(predictor(context, keep, targets), predicted, rtol=0, atol=1e-10)
    # transformers uses mask token 1; mask_token_index selects another
    other = load_hugging_face_vjepa(folders / "model", mask_token_index=0).predictor
    assert not torch.allclose(other(context, keep, targets), predicted)
    assert classifier is None and not encoder.training


@torch.no_grad()
def test_a_loaded_classifier_equals_transformers(folders):
    reference = VJEPA2ForVideoClassification.from_pretrained(folders / "classifier", dtype=torch.float64).eval()
    encoder, _, classifier, _ = load_hugging_face_vjepa(folders / "classifier")
    logits = reference(normalize(make_video())).logits
    torch.testing.assert_close(classifier(encoder(make_video())), logits, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("pixels", [{}, {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}])
def test_transformers_loads_saved_networks_with_equal_outputs(pixels, tmp_path):
    shared = {"image_size": (24, 24), "patch_size": 8, "frames": 6, "tiled_rope": True}
    torch.manual_seed(0)
    encoder = enlarge(VideoEncoder(**shared, **pixels, width=48, depth=3, heads=4, mlp_ratio=2.5)).eval()
    predictor = enlarge(MaskedPredictor(48, **shared, width=24, depth=2, heads=2, num_mask_tokens=3)).eval()
    probe = enlarge(AttentiveClassifier(48, 5, heads=4, depth=3, norm_eps=1e-6)).eval()
    save_hugging_face_vjepa(tmp_path / "out", encoder, predictor, probe)
    reference = VJEPA2ForVideoClassification.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    inputs = normalize(make_video()) if pixels else make_video()
    torch.testing.assert_close(reference(inputs).logits, probe(encoder(make_video())), rtol=0, atol=1e-10)
    keep, targets = tokens(2, TOKENS, 10, 8)
    output = reference.vjepa2(inputs, context_mask=[keep], target_mask=[targets])
    context = output.last_hidden_state.gather(1, keep[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(
        predictor(context, keep, targets, mask_token_index=1),
        output.predictor_output.last_hidden_state,
        rtol=0,
        atol=1e-10,
    )
    loaded = load_hugging_face_vjepa(tmp_path / "out")
    torch.testing.assert_close(loaded.encoder(make_video()), encoder(make_video()), rtol=0, atol=1e-12)
    save_hugging_face_vjepa(tmp_path / "bare", encoder, predictor)
    bare = VJEPA2Model.from_pretrained(tmp_path / "bare", dtype=torch.float64).eval()
    features = bare(inputs, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(features, output.last_hidden_state, rtol=0, atol=1e-12)


def test_saving_a_loaded_folder_writes_equal_weights(folders, tmp_path):
    save_hugging_face_vjepa(tmp_path / "again", *load_hugging_face_vjepa(folders / "classifier")[:3])
    original, saved = (
        load_file(folder / "model.safetensors") for folder in (folders / "classifier", tmp_path / "again")
    )
    assert original.keys() == saved.keys() and all(torch.equal(original[key], saved[key]) for key in original)


def write_changed_copy(folders, tmp_path, change, name="classifier"):
    """A copy of a folder whose weights or config have been changed."""
    folder = tmp_path / "changed"
    folder.mkdir()
    weights = load_file(folders / name / "model.safetensors")
    config = json.loads((folders / name / "config.json").read_text())
    change(weights, config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


NORM = "vjepa2.encoder.layer.1.norm1.weight"
FAULTS = {
    "a missing key": (lambda w, c: w.pop(NORM), r"missing: encoder\.layer\.1\.norm1\.weight"),
    "a missing part": (
        lambda w, c: w.pop("pooler.cross_attention_layer.cross_attn.k_proj.weight"),
        r"missing: .*k_proj",
    ),
    "a missing fc1": (lambda w, c: w.pop("vjepa2.encoder.layer.0.mlp.fc1.weight"), r"missing: .*layer\.0\.mlp\.fc1"),
    "an extra key": (lambda w, c: w.update({"vjepa2.encoder.more": w[NORM].clone()}), r"not used: encoder\.more"),
    "a foreign key": (lambda w, c: w.update({"more": w[NORM].clone()}), r"not used: more"),
    "a shape": (lambda w, c: w.update({NORM: w[NORM][:7].clone()}), r"layer\.1\.norm1\.weight \[7\] instead of \[48\]"),
    "a layer more": (lambda w, c: c.update(num_hidden_layers=4), r"missing: encoder\.layer\.3\.norm1"),
    "a layer less": (lambda w, c: c.update(num_hidden_layers=2), r"not used: encoder\.layer\.2\."),
    "another model": (lambda w, c: c.update(model_type="vit"), "model_type is 'vit', not 'vjepa2'"),
    "another activation": (lambda w, c: c.update(hidden_act="relu"), "hidden_act is 'relu'; only 'gelu'"),
    "a setting": (lambda w, c: c.pop("tubelet_size"), "the setting 'tubelet_size' is missing"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_errors_name_the_fault_in_a_folder(fault, folders, tmp_path):
    change, message = FAULTS[fault]
    with pytest.raises(PretrainedWeightsError, match=message):
        load_hugging_face_vjepa(write_changed_copy(folders, tmp_path, change))


def test_rejects_unreadable_folders(folders, tmp_path):
    with pytest.raises(PretrainedWeightsError, match=r"config\.json: cannot be read"):
        load_hugging_face_vjepa(tmp_path)
    (tmp_path / "config.json").write_text((folders / "model" / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PretrainedWeightsError, match=r"model\.safetensors: cannot be read"):
        load_hugging_face_vjepa(tmp_path)


@torch.no_grad()
def test_weights_in_several_files_are_read(folders, tmp_path):
    model = VJEPA2Model.from_pretrained(folders / "model", dtype=torch.float64)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole, sharded = (load_hugging_face_vjepa(folder).encoder for folder in (folders / "model", tmp_path / "sharded"))
    torch.testing.assert_close(whole(make_video()), sharded(make_video()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("encoder_changes", "predictor_changes", "message"),
    [
        ({"tiled_rope": False}, {}, "VideoEncoder has tiled_rope=False"),
        ({"positions": "sincos", "tiled_rope": False}, {}, "VideoEncoder has positions='sincos'"),
        ({"mlp": "swiglu"}, {}, "VideoEncoder has mlp='swiglu'"),
        ({"image_size": (24, 16)}, {}, r"VideoEncoder has image_size=.*24, 16"),
        ({"feature_layers": [0]}, {}, r"VideoEncoder has feature_layers=\[0\]"),
        ({"width": 24}, {}, "MaskedPredictor has encoder_width=48"),
        ({"frames": 8}, {}, "MaskedPredictor has frames=6"),
        ({}, {"predict_context": True}, "MaskedPredictor has predict_context=True"),
        ({}, {"output_width": 24}, "the predictor's features are 24 wide, not 48"),
    ],
)
def test_rejects_networks_that_the_layout_cannot_represent_and_writes_nothing(
    encoder_changes, predictor_changes, message, tmp_path
):
    shared = {"image_size": (24, 24), "patch_size": 8, "frames": 6, "tiled_rope": True}
    encoder = VideoEncoder(**(shared | {"width": 48, "depth": 2, "heads": 4} | encoder_changes))
    predictor = MaskedPredictor(48, **(shared | {"width": 24, "depth": 1, "heads": 2} | predictor_changes))
    with pytest.raises(PretrainedWeightsError, match=message):
        save_hugging_face_vjepa(tmp_path / "out", encoder, predictor)
    assert not list(tmp_path.iterdir())


SHIPPED = {
    path.stem: load_config(path) for path in sorted((Path(__file__).parents[3] / "configs/vjepa").glob("*.yaml"))
}
ENCODERS = {name: config["model"]["init_args"]["encoder"]["init_args"] for name, config in SHIPPED.items()}
ROTARY = [
    name
    for name, encoder in ENCODERS.items()
    if encoder.get("positions", "rope") == "rope"
    and not encoder.get("tiled_rope")  # weights that were published so
    and not encoder.get("feature_layers")  # V-JEPA 2.1, which the layout cannot represent
    and "predictor" in SHIPPED[name]["model"]["init_args"]
]


@pytest.mark.parametrize("name", ROTARY)
def test_models_of_shipped_configs_convert_with_the_options_that_the_refusal_names(name, tmp_path):
    def networks(options):
        """The config's networks with less width and depth, and with options such as those of ``vwm fit``."""
        found = []
        for part, kind in (("encoder", VideoEncoder), ("predictor", MaskedPredictor)):
            settings = dict(SHIPPED[name]["model"]["init_args"][part]["init_args"])
            settings |= {"width": 48, "depth": 1, "heads": 4}
            settings |= {"encoder_width": 48} if kind is MaskedPredictor else {}
            for key, value in options:
                if key.startswith(f"--model.init_args.{part}.init_args."):
                    settings[key.rpartition(".")[2]] = json.loads(value)
            found.append(kind(**settings))
        return found

    with pytest.raises(PretrainedWeightsError, match="VideoEncoder has tiled_rope=False") as refusal:
        save_hugging_face_vjepa(tmp_path / "out", *networks([]))
    options = re.findall(r"(--\S+) (\w+)", str(refusal.value))
    save_hugging_face_vjepa(tmp_path / "out", *networks(options))
    assert len(options) == 2 and VJEPA2Model.from_pretrained(tmp_path / "out").config.hidden_size == 48


def test_rejects_an_existing_folder_and_an_unsupported_probe(tmp_path):
    shared = {"image_size": (24, 24), "patch_size": 8, "frames": 6, "tiled_rope": True}
    encoder = randomize(VideoEncoder(**shared, width=48, depth=2, heads=4))
    predictor = MaskedPredictor(48, **shared, width=24, depth=1, heads=2)
    with pytest.raises(PretrainedWeightsError, match="exists: choose another folder"):
        save_hugging_face_vjepa(tmp_path, encoder, predictor)
    probe = AttentiveClassifier(48, 5, heads=4)
    with pytest.raises(PretrainedWeightsError, match="AttentiveClassifier has norm_eps=1e-05"):
        save_hugging_face_vjepa(tmp_path / "out", encoder, predictor, probe)
