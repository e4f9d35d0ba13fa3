"""Official checkpoints: transformers' weights, renamed to the official layout, load to a network of equal outputs."""

import re

import pytest
import torch
from transformers import VJEPA2Config, VJEPA2ForVideoClassification
from vjepa_models import encoder as small_encoder
from vjepa_models import enlarge, random, tokens
from vjepa_models import predictor as small_predictor

from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.vjepa.official_weights import VJEPA21_FEATURE_LAYERS, load_official_vjepa, load_official_vjepa_probe

SIZES = {
    "crop_size": 24, "patch_size": 8, "frames_per_clip": 6, "tubelet_size": 2, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_pooler_layers": 2, "num_labels": 5, "layer_norm_eps": 1e-6,
    "pred_hidden_size": 24, "pred_num_hidden_layers": 2, "pred_num_attention_heads": 2, "pred_num_mask_tokens": 3,
}  # fmt: skip
OPTIONS = {"image_size": (24, 24), "frames": 6, "heads": 4, "predictor_num_heads": 2}
TOKENS = 27
MEAN, STD = (
    torch.tensor(values, dtype=torch.float64)[:, None, None]
    for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return enlarge(VJEPA2ForVideoClassification(VJEPA2Config(**SIZES))).eval()


def concatenate_weights(state: dict, *parts: tuple[str, str]) -> dict:
    """Concatenate weights as in the official layout; each part gives old names, separated by |, and the new name."""
    for names, new in parts:
        first, *others = names.split("|")
        for key in [key for key in state if first in key]:
            weights = [state.pop(key)] + [state.pop(key.replace(first, other)) for other in others]
            state[key.replace(first, new)] = torch.cat(weights)
    return state


def official_encoder(model, prefix: str = "module.backbone.") -> dict:
    state = concatenate_weights(
        model.vjepa2.encoder.state_dict(), ("attention.query|attention.key|attention.value", "attn.qkv")
    )
    renames = {r"embeddings\.patch_embeddings": "patch_embed", r"^layer\.": "blocks.", r"^layernorm": "norm"}
    for old, new in (renames | {"attention": "attn"}).items():
        state = {re.sub(old, new, key): weight for key, weight in state.items()}
    return {prefix + key: weight for key, weight in state.items()}


def official_predictor(model, prefix: str = "module.backbone.") -> dict:
    state = concatenate_weights(
        model.vjepa2.predictor.state_dict(), ("attention.query|attention.key|attention.value", "attn.qkv")
    )
    tokens = state.pop("embeddings.mask_tokens")
    renames = {r"embeddings\.predictor_embeddings": "embed", r"^layer\.": "blocks.", r"^layernorm": "norm"}
    for old, new in (renames | {"attention": "attn"}).items():
        state = {re.sub(old, new, key): weight for key, weight in state.items()}
    state = {f"predictor_{key}": weight for key, weight in state.items()}
    state |= {f"mask_tokens.{number}": token for number, token in enumerate(tokens)}
    return {prefix + key: weight for key, weight in state.items()}


def official_probe(model) -> dict:
    state = {**{f"pooler.{k}": v for k, v in model.pooler.state_dict().items()}}
    state |= {f"linear.{k}": v for k, v in model.classifier.state_dict().items()}
    concatenate_weights(state, ("self_attn.q_proj|self_attn.k_proj|self_attn.v_proj", "attn.qkv"))
    concatenate_weights(state, ("cross_attn.k_proj|cross_attn.v_proj", "xattn.kv"), ("cross_attn.q_proj", "xattn.q"))
    renames = {"layer_norm": "norm", "self_attn.out_proj": "attn.proj", "self_attention_layers": "blocks"}
    for old, new in (renames | {"cross_attention_layer": "cross_attention_block"}).items():
        state = {key.replace(old, new): weight for key, weight in state.items()}
    return {f"module.{key}": weight for key, weight in state.items()}


@pytest.fixture
def checkpoint(reference):
    return {
        "encoder": {key: weight + 1 for key, weight in official_encoder(reference).items()},
        "target_encoder": official_encoder(reference),
        "predictor": official_predictor(reference),
        "opt": {"state": {}},
        "epoch": 3,
    }


@torch.no_grad()
def test_a_loaded_official_checkpoint_equals_transformers(reference, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "vjepa2.pt")
    encoder, predictor, *_ = load_official_vjepa(tmp_path / "vjepa2.pt", **OPTIONS)
    video = random(2, 6, 3, 24, 24).tanh()
    keep, targets = tokens(2, TOKENS, 10, 8)
    output = reference.vjepa2(((video + 1) / 2 - MEAN) / STD, context_mask=[keep], target_mask=[targets])
    features = encoder(video)
    torch.testing.assert_close(features, output.last_hidden_state, rtol=0, atol=1e-10)
    context = features.gather(1, keep[..., None].expand(-1, -1, 48))
    predicted = predictor(context, keep, targets)
    torch.testing.assert_close(predicted, output.predictor_output.last_hidden_state, rtol=0, atol=1e-10)


@torch.no_grad()
def test_options_select_the_encoder_rope_and_mask_token(checkpoint, tmp_path):
    file = tmp_path / "vjepa2.pt"
    torch.save(checkpoint, file)
    plain = load_official_vjepa(file, **OPTIONS)
    video = random(1, 6, 3, 24, 24).tanh()
    for option in ({"source": "encoder"}, {"tiled_rope": False}):
        assert not torch.allclose(load_official_vjepa(file, **OPTIONS, **option).encoder(video), plain.encoder(video))
    assert plain.predictor.config.mask_token_index == 1
    assert load_official_vjepa(file, **OPTIONS, mask_token_index=0).predictor.config.mask_token_index == 0
    del checkpoint["target_encoder"]
    checkpoint["ema_encoder"] = checkpoint["encoder"]
    del checkpoint["predictor"]
    torch.save(checkpoint, file)
    other = load_official_vjepa(file, **OPTIONS)
    assert other.predictor is None and not torch.allclose(other.encoder(video), plain.encoder(video))


@torch.no_grad()
def test_a_loaded_official_probe_equals_transformers_except_for_norm_eps(reference, tmp_path):
    torch.save({"classifiers": [official_probe(reference), {}], "epoch": 1}, tmp_path / "probe.pt")
    probe = load_official_vjepa_probe(tmp_path / "probe.pt", heads=4)
    features = random(2, TOKENS, 48)
    for module in reference.pooler.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps == 1e-6
            module.eps = 1e-5  # the eps of the official probes; transformers has another
    logits = reference.classifier(reference.pooler(features))
    for module in reference.pooler.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    torch.testing.assert_close(probe(features), logits, rtol=0, atol=1e-10)
    with pytest.raises(PretrainedWeightsError, match="there is no probe 2 in classifiers, which has 2 entries"):
        load_official_vjepa_probe(tmp_path / "probe.pt", number=2)
    with pytest.raises(PretrainedWeightsError, match=r"classifiers\[1\]: missing: linear\.weight"):
        load_official_vjepa_probe(tmp_path / "probe.pt", number=1)


@torch.no_grad()
@pytest.mark.parametrize("uniform", [False, True])
def test_position_tables_of_the_first_v_jepa_are_checked_and_discarded(uniform, tmp_path):
    settings = {"positions": "sincos", "uniform_power": uniform, "image_size": (16, 24)}
    encoder, predictor = small_encoder(**settings), small_predictor(**settings)
    weights = {f"module.backbone.{key}": weight for key, weight in encoder.state_dict().items()}
    table = encoder.positions.additive_embedding(encoder.grid(), torch.zeros(1)).double()
    weights["module.backbone.pos_embed"] = table[None]
    masked = {f"predictor_{key}": weight for key, weight in predictor.state_dict().items() if key != "mask_embed"}
    masked |= {f"mask_tokens.{number}": token[None, None] for number, token in enumerate(predictor.mask_embed)}
    masked["predictor_pos_embed"] = predictor.positions.additive_embedding(predictor.grid(), torch.zeros(1))[None]
    torch.save({"target_encoder": weights, "predictor": masked}, tmp_path / "vjepa.pt")
    options = {"image_size": (16, 24), "frames": 8, "heads": 4, "predictor_num_heads": 2}
    loaded = load_official_vjepa(tmp_path / "vjepa.pt", **options, positions="sincos")
    assert loaded.encoder.config.uniform_power == loaded.predictor.config.uniform_power == uniform
    video = random(1, 8, 3, 16, 24).tanh()
    expected = encoder(((video + 1) / 2 - MEAN) / STD)
    torch.testing.assert_close(loaded.encoder(video), expected, rtol=0, atol=1e-10)
    load_official_vjepa(tmp_path / "vjepa.pt", **options)  # with rope the tables are ignored
    with pytest.raises(
        PretrainedWeightsError, match=r"pos_embed is of shape \[1, 24, 48\], not the sines and cosines of 4 frames"
    ):
        load_official_vjepa(tmp_path / "vjepa.pt", **(options | {"frames": 4}), positions="sincos")
    del weights["module.backbone.pos_embed"]
    torch.save({"target_encoder": weights}, tmp_path / "vjepa.pt")
    with pytest.raises(PretrainedWeightsError, match="pos_embed is missing"):
        load_official_vjepa(tmp_path / "vjepa.pt", **options, positions="sincos")


@torch.no_grad()
@pytest.mark.parametrize("levels", [4, 1], ids=["pretrained", "distilled"])
def test_v_jepa_2_1_is_recognized_by_its_keys(levels, tmp_path):
    """The published ViT-B and ViT-L predict the last layer of a teacher of another width."""
    shared = {"rope_reference_grid": (32, 32), "modality_embeddings": True}
    encoder = small_encoder(**shared, depth=12, feature_layers=[2, 5, 8])
    predictor = small_predictor(**shared, num_feature_layers=levels, output_width=20, predict_context=True)
    norms = {
        f"feature_norms.{level}.": f"norms_block.{number}." for number, level in enumerate(VJEPA21_FEATURE_LAYERS[12])
    }
    weights = {re.sub(r"^norm\.", "norms_block.3.", key): weight for key, weight in encoder.state_dict().items()}
    for name, official_name in norms.items():
        weights = {key.replace(name, official_name): weight for key, weight in weights.items()}
    masked = {
        key if "mod_embed" in key else f"predictor_{key}": weight
        for key, weight in predictor.state_dict().items()
        if key != "mask_embed"
    }
    masked |= {f"mask_tokens.{number}": token[None, None] for number, token in enumerate(predictor.mask_embed)}
    torch.save({"ema_encoder": weights, "predictor": masked}, tmp_path / "vjepa2_1.pt")
    options = {"image_size": (16, 24), "frames": 8, "heads": 4, "predictor_num_heads": 2}
    loaded = load_official_vjepa(tmp_path / "vjepa2_1.pt", **options, mask_token_index=0)
    assert not loaded.encoder.config.tiled_rope
    for frames in (1, 8):
        video = random(2, frames, 3, 16, 24).tanh()
        pixels = ((video + 1) / 2 - MEAN) / STD
        layers = [*VJEPA21_FEATURE_LAYERS[12], -1]
        for output, expected in zip(
            loaded.encoder.layer_features(video, layers), encoder.layer_features(pixels, layers), strict=True
        ):
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    keep, targets = tokens(2, 24, 7, 5)
    context = random(2, 7, levels * 48)
    for output, expected in zip(
        loaded.predictor.predict_all(context, keep, targets), predictor.predict_all(context, keep, targets), strict=True
    ):
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


KEY = "module.backbone.blocks.1.norm2.weight"
MASK = "module.backbone.mask_tokens.1"
FAULTS = {
    "a missing key": (lambda c: c["target_encoder"].pop(KEY), r"target_encoder: missing: blocks\.1\.norm2\.weight"),
    "an extra key": (lambda c: c["target_encoder"].update(more=torch.zeros(1)), "target_encoder: not used: more"),
    "a shape": (
        lambda c: c["target_encoder"].update({KEY: torch.zeros(7)}),
        r"blocks\.1\.norm2\.weight \[7\] instead of \[48\]",
    ),
    "no patches": (
        lambda c: c["target_encoder"].pop("module.backbone.patch_embed.proj.weight"),
        r"missing: patch_embed\.proj\.weight",
    ),
    "a missing mask token": (lambda c: c["predictor"].pop(MASK), r"predictor: missing: mask_tokens\.1"),
    "a mask token's shape": (
        lambda c: c["predictor"].update({MASK: torch.zeros(1, 7)}),
        r"mask_tokens\.1 \[1, 7\] instead of \[1, 1, 24\]",
    ),
    "no encoder": (lambda c: (c.pop("target_encoder"), c.pop("encoder")), "the checkpoint has no weights of this name"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_errors_name_the_fault_in_a_checkpoint(fault, checkpoint, tmp_path):
    change, message = FAULTS[fault]
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "vjepa2.pt")
    with pytest.raises(PretrainedWeightsError, match=message):
        load_official_vjepa(tmp_path / "vjepa2.pt", **OPTIONS)


def test_rejects_other_files_without_executing_them(tmp_path):
    with pytest.raises(PretrainedWeightsError, match=r"vjepa2\.pt: cannot be read \(FileNotFoundError"):
        load_official_vjepa(tmp_path / "vjepa2.pt")

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"encoder": Trap()}, tmp_path / "vjepa2.pt")
    with pytest.raises(PretrainedWeightsError, match="cannot be read"):
        load_official_vjepa(tmp_path / "vjepa2.pt")
    assert not (tmp_path / "sprung").exists()
    torch.save([1], tmp_path / "vjepa2.pt")
    with pytest.raises(PretrainedWeightsError, match="holds a list and no checkpoint"):
        load_official_vjepa(tmp_path / "vjepa2.pt")


def test_a_width_that_was_never_released_requires_heads(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "vjepa2.pt")
    with pytest.raises(PretrainedWeightsError, match="no released encoder has width 48"):
        load_official_vjepa(tmp_path / "vjepa2.pt", image_size=(24, 24), frames=6)
