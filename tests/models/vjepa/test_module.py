"""Masked pretraining: the loss, gradient flow, and advice on collapse."""

import copy

import pytest
import torch
from factories import randomize

from vwm.core.components import save_component
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.augmentation import RandomResizedCrop
from vwm.models.vjepa.collapse_regularizers import SIGReg, VarianceCovarianceRegularizer
from vwm.models.vjepa.masked_prediction import (
    ContextLossConfig,
    encode_levels,
    gather_tokens,
    normalize_features,
    token_distances,
)
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import ContextBlockMaskSampler, MultiBlockMaskSampler
from vwm.models.vjepa.module import (
    EMAMomentumSchedule,
    VJEPAModule,
    subtract_position_mean,
    update_target_encoder,
)
from vwm.models.vjepa.motion_branch import MotionBranch
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig

SIZES = {"image_size": (16, 16), "frames": 4, "tubelet": 2, "patch_size": 4, "heads": 2, "depth": 2}


def make_module(**settings) -> VJEPAModule:
    torch.manual_seed(0)
    networks = settings.pop("networks", {})
    encoder = randomize(VideoEncoder(width=24, **SIZES, **networks.get("encoder", {})))
    predictor = randomize(MaskedPredictor(encoder_width=24, width=16, **SIZES, **networks.get("predictor", {})))
    masks = [MultiBlockMaskSampler(2, (0.2, 0.3)), MultiBlockMaskSampler(1, (0.5, 0.5))]
    return VJEPAModule(
        encoder, predictor, **{"mask_samplers": masks, "optimizer": OptimizerConfig(), **settings}
    ).train()


def make_batch(clips: int = 4, frames: int = 4) -> ClipBatch:
    video = torch.randint(
        0, 256, (clips, frames, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return ClipBatch(frames=video, seed=torch.arange(clips) * 7919)


def test_the_loss_is_the_mean_distance_to_the_normalized_target_features():
    model = make_module()
    with torch.no_grad():
        for p in model.target_encoder.parameters():
            p.mul_(1.1)
    clips = model.sample_masks(make_batch())
    video, losses = frames_to_float(clips.frames), []
    targets = torch.nn.functional.layer_norm(model.target_encoder(video), (24,))
    for token, mask in enumerate(clips.masks):
        predicted = model.predictor(
            model.encoder(video, mask.context_indices), mask.context_indices, mask.target_indices[0], token
        )
        target = torch.stack([targets[i, mask.target_indices[0][i]] for i in range(4)])
        losses.append((predicted - target).abs().mean())
    torch.testing.assert_close(model(clips)[0], (losses[0] + losses[1]) / 2)


DENSE = {
    "encoder": {"feature_layers": [0], "modality_embeddings": True},
    "predictor": {"num_feature_layers": 2, "predict_context": True, "modality_embeddings": True},
}
"""Networks of V-JEPA 2.1."""


def test_one_mask_token_may_stand_for_the_hidden_tokens_of_all_masks():
    """As in the published V-JEPA 2, which trains the first of its tokens."""
    own, shared = make_module(), make_module(mask_token=0)
    clips = own.sample_masks(make_batch())
    assert not torch.isclose(own(clips)[0], shared(clips)[0])
    with torch.no_grad():
        own.predictor.mask_embed[1] = own.predictor.mask_embed[0]
    loss = shared(clips)[0]
    torch.testing.assert_close(own(clips)[0], loss, rtol=0, atol=0)
    loss.backward()
    assert shared.predictor.mask_embed.grad[0].any() and not shared.predictor.mask_embed.grad[1].any()
    with pytest.raises(ValueError, match=r"mask_token=2 must be 0\.\.1, or null"):
        make_module(mask_token=2)


def test_a_student_predicts_the_last_layer_of_a_frozen_teacher(tmp_path):
    torch.manual_seed(3)
    teacher = randomize(VideoEncoder(width=32, **SIZES, feature_layers=[0], pixel_mean=(0.4, 0.4, 0.4)))
    save_component(teacher, tmp_path / "encoder")
    networks = {"encoder": DENSE["encoder"], "predictor": DENSE["predictor"] | {"num_feature_layers": 1}}
    networks["predictor"]["output_width"] = 32
    settings = {"context_loss": ContextLossConfig(warmup_start=0, warmup_end=0), "teacher": str(tmp_path)}
    model = make_module(networks=networks, **settings)
    clips = model.sample_masks(make_batch())
    video = frames_to_float(clips.frames)
    targets, errors = torch.nn.functional.layer_norm(teacher(video), (32,)), []
    for token, (seen, (masked,)) in enumerate(clips.masks):
        predicted, _ = model.predictor.predict_all(model.encoder(video, seen), seen, masked, token, 4)
        errors.append((predicted - gather_tokens(targets, masked)).abs().mean())
    loss, logs = model(clips)
    torch.testing.assert_close(logs["prediction_loss"], (errors[0] + errors[1]) / 2)
    loss.backward()
    assert not model.teacher.training and all(p.grad is None for p in model.teacher.parameters())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("teacher", "target_encoder", "encoder.feature_norms")) for name in trained)
    assert set(model.networks()) == {"encoder", "predictor", "target_encoder"}  # not the teacher
    assert "teacher's: lower the learning rate" in model.collapse_advice()
    networks["predictor"]["output_width"] = None
    with pytest.raises(ValueError, match=r"teacher\.width=32: set predictor\.output_width to 32"):
        make_module(networks=networks, **settings)
    networks["predictor"]["output_width"] = 32
    save_component(VideoEncoder(width=32, **SIZES | {"patch_size": 8}), tmp_path / "coarse")
    with pytest.raises(ValueError, match=r"teacher\.patch_size=8 but encoder\.patch_size=4: set them equal"):
        make_module(networks=networks, **settings | {"teacher": str(tmp_path / "coarse")})


@pytest.mark.parametrize("frames", [4, 1])
def test_the_dense_loss_adds_visible_tokens_by_their_distance_and_layers_by_their_own_norms(frames):
    model = make_module(
        networks=DENSE,
        context_loss=ContextLossConfig(weight=0.5, image_weight=0.7, warmup_start=0, warmup_end=0),
    )
    clips = model.sample_masks(make_batch(frames=frames))
    video = frames_to_float(clips.frames)
    layers = model.target_encoder.layer_features(video, [0, 1])
    targets = torch.cat([torch.nn.functional.layer_norm(layer, (24,)) for layer in layers], dim=-1)
    hidden, visible = [], []
    for token, (seen, (masked,)) in enumerate(clips.masks):
        features = torch.cat(model.encoder.layer_features(video, [0, 1], seen), dim=-1)
        predicted, context = model.predictor.predict_all(features, seen, masked, token, frames)
        for clip in range(len(video)):
            hidden.append((predicted[clip] - targets[clip, masked[clip]]).abs().mean())
            for place, index in enumerate(seen[clip].tolist()):
                gaps = [(index // 16 - i // 16, index // 4 % 4 - i // 4 % 4, index % 4 - i % 4) for i in masked[clip]]
                nearest = min(sum(int(gap) ** 2 for gap in gaps_of_one) for gaps_of_one in gaps) ** 0.5
                visible.append((context[clip, place] - targets[clip, index]).abs().mean() / nearest**0.5)
    weights = torch.cat(
        [torch.full((4 * m.context_indices.shape[1],), 0.5 / m.context_indices.numel()) for m in clips.masks]
    )
    loss, logs = model(clips)
    torch.testing.assert_close(logs["prediction_loss"], (sum(hidden[:4]) + sum(hidden[4:])) / 8)
    torch.testing.assert_close(logs["context_loss"], (torch.stack(visible) * weights).sum())
    torch.testing.assert_close(loss, logs["prediction_loss"] + {4: 0.5, 1: 0.7}[frames] * logs["context_loss"])
    loss.backward()
    unused = {"patch_embed_img", "img_mod_embed"} if frames == 4 else {"patch_embed.", "video_mod_embed"}
    trained = [*model.encoder.named_parameters(), *model.predictor.named_parameters()]
    idle = {name for name, p in trained if p.grad is None}
    assert idle and all(any(part in name for part in unused) for name in idle)


def test_the_weight_of_visible_tokens_rises_between_two_steps():
    warmup = ContextLossConfig(weight=0.5, image_weight=1.0, warmup_start=10, warmup_end=20)
    assert [warmup.weight_at(step, 4) for step in (0, 10, 15, 20, 99)] == [0, 0, 0.25, 0.5, 0.5]
    assert warmup.weight_at(15, 1) == 0.5 and ContextLossConfig().weight_at(30000, 1) == 0.5
    with pytest.raises(ValueError, match="warmup_start=5 must be 0 or more, and at most warmup_end=4"):
        ContextLossConfig(warmup_start=5, warmup_end=4)


def test_levels_and_distances_of_tokens():
    encoder = randomize(VideoEncoder(width=24, feature_layers=[0], **SIZES))
    video = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(encode_levels(encoder, video, 1), encode_levels(encoder, video, 2)[..., 24:])
    found = token_distances(torch.tensor([[0, 5, 31]]), torch.tensor([[15, 16]]), (2, 4, 4))
    torch.testing.assert_close(found, torch.tensor([[1.0, 3**0.5, 1.0]]))


def test_every_weight_but_the_target_encoders_gets_a_gradient():
    model = make_module()
    model(model.sample_masks(make_batch()))[0].backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    trained = [*model.encoder.named_parameters(), *model.predictor.named_parameters()]
    assert not [name for name, p in trained if p.grad is None or not p.grad.any()]


def test_without_momentum_gradients_pass_through_the_targets():
    without_ema, with_ema = make_module(momentum=None), make_module(momentum=EMAMomentumSchedule(0, 0))
    clips = without_ema.sample_masks(make_batch())
    gradients = []
    for model in (without_ema, with_ema):
        loss, _ = model(clips)
        loss.backward()
        gradients.append(model.encoder.blocks[0].attn.qkv.weight.grad)
    assert not torch.allclose(*gradients)
    assert without_ema.target_encoder is None and "target_encoder" not in without_ema.networks()


def test_the_target_encoder_is_an_ema_of_the_encoder():
    model = make_module()
    target, before = copy.deepcopy(model.target_encoder), copy.deepcopy(model.target_encoder)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1)
    update_target_encoder(target, model.encoder, 0.9)
    for now, old, new in zip(target.parameters(), before.parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)


def test_masks_are_equal_for_equal_clips_and_sampled_once():
    model = make_module()
    one, two = model.sample_masks(make_batch()), model.sample_masks(make_batch())
    assert all(torch.equal(a.context_indices, b.context_indices) for a, b in zip(one.masks, two.masks, strict=True))
    assert model.on_before_batch_transfer(one, 0) is one


@pytest.mark.parametrize("term", [VarianceCovarianceRegularizer(), SIGReg(num_slices=8)])
@pytest.mark.parametrize("momentum", [None, EMAMomentumSchedule()])
def test_regularizers_are_added_to_the_loss(term, momentum):
    model = make_module(regularizer=term, momentum=momentum)
    torch.manual_seed(0)
    loss, logs = model(model.sample_masks(make_batch()))
    assert loss > logs["prediction_loss"] and len(logs) > 1


def test_regularizers_get_features_without_the_mean_of_their_position():
    tokens, positions = torch.randn(6, 5, 3), torch.arange(5).expand(6, 5)
    centered = subtract_position_mean(tokens + 100 * torch.randn(5, 3), positions, 9).unflatten(0, (6, 5))
    torch.testing.assert_close(centered, tokens - tokens.mean(0), rtol=0, atol=1e-4)
    assert torch.equal(subtract_position_mean(tokens[:1], positions[:1], 9), torch.zeros(5, 3))


def test_the_motion_branch_trains_the_encoder_jointly():
    model = make_module(motion=MotionBranch(24, 8, radius=1))
    _, logs = model(model.sample_masks(make_batch()))
    assert {"motion_feature_loss", "motion_photometric_loss"} <= logs.keys()
    model.motion(model.encoder(frames_to_float(make_batch().frames)), frames_to_float(make_batch().frames), (2, 4, 4))[
        0
    ].backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.any() and model.motion.project.weight.grad.any()


def test_images_train_as_clips_of_one_frame():
    model = make_module(mask_samplers=[ContextBlockMaskSampler(num_targets=2)])
    loss, _ = model(model.sample_masks(make_batch(frames=1)))
    loss.backward()
    assert torch.isfinite(loss) and model.encoder.patch_embed.proj.weight.grad.any()


def test_augmentation_applies_in_training_only():
    model = make_module(augmentation=RandomResizedCrop())
    plain = frames_to_float(make_batch().frames)
    assert not torch.equal(model._augmented_video(make_batch()), plain)
    assert torch.equal(model.eval()._augmented_video(make_batch()), plain)


def test_pretrained_networks_are_loaded_from_a_folder(tmp_path):
    trained = make_module()
    for name in ("encoder", "predictor"):
        save_component(getattr(trained, name), tmp_path / name)
    fresh = make_module(pretrained=str(tmp_path))
    for a, b in zip(fresh.target_encoder.parameters(), trained.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="does not fit the config's encoder"):
        encoder = VideoEncoder(width=24, **{**SIZES, "depth": 1})
        predictor = MaskedPredictor(encoder_width=24, width=16, **SIZES)
        VJEPAModule(encoder, predictor, [MultiBlockMaskSampler(1)], OptimizerConfig(), pretrained=str(tmp_path))


def test_rejects_mismatched_networks():
    encoder = VideoEncoder(width=24, **SIZES)
    with pytest.raises(ValueError, match=r"encoder_width=32 but encoder\.width=24"):
        VJEPAModule(
            encoder, MaskedPredictor(encoder_width=32, width=16, **SIZES), [MultiBlockMaskSampler(1)], OptimizerConfig()
        )
    with pytest.raises(ValueError, match=r"patch_size=4 but predictor\.patch_size=8"):
        other = MaskedPredictor(encoder_width=24, width=16, **{**SIZES, "patch_size": 8})
        VJEPAModule(encoder, other, [MultiBlockMaskSampler(1)], OptimizerConfig())
    with pytest.raises(ValueError, match=r"num_feature_layers=3, but the encoder has 1 layers of features"):
        make_module(networks={"predictor": {"num_feature_layers": 3}})
    with pytest.raises(ValueError, match=r"predictor.output_width=8 but the targets have encoder.width=24"):
        make_module(networks={"predictor": {"output_width": 8}})
    with pytest.raises(ValueError, match=r"predict_context=True, and context_loss is missing"):
        make_module(networks={"predictor": {"predict_context": True}})
    with pytest.raises(ValueError, match="mask_samplers is empty"):
        make_module(mask_samplers=[])


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"momentum": None}, "set model.momentum, or model.regularizer"),
        ({"momentum": EMAMomentumSchedule(0.5, 0.5)}, "momentum.start=0.5"),
        ({"momentum": None, "regularizer": SIGReg()}, "Raise the weights of model.regularizer"),
        ({}, "optimizer.lr=0.0003"),
    ],
)
def test_collapse_advice_names_the_setting_to_change(settings, advice):
    assert advice in make_module(**settings).collapse_advice()


def test_samples_are_images_of_features_in_the_shape_of_the_clips():
    images = make_module().sample(make_batch())
    assert images.shape == (4, 4, 16, 16, 3) and images.dtype == torch.uint8 and images.float().std() > 10


def test_normalized_features_have_zero_mean_and_unit_standard_deviation():
    x = normalize_features(torch.randn(2, 3, 24) * 5 + 2)
    torch.testing.assert_close(x.mean(-1), torch.zeros(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(-1, correction=0), torch.ones(2, 3), rtol=0, atol=1e-3)
    assert torch.equal(gather_tokens(x, torch.tensor([[2], [0]]))[:, 0], torch.stack((x[0, 2], x[1, 0])))


def mixed_batch(still: list[bool]) -> ClipBatch:
    """Videos and repeated images, as ``data.stills`` gives them."""
    batch = make_batch(len(still))
    batch.still = torch.tensor(still)
    batch.frames[batch.still] = batch.frames[batch.still, :1]
    return batch


def test_videos_and_images_of_a_batch_count_by_their_number_each_in_passes_of_its_own():
    model = make_module(networks={"encoder": {"modality_embeddings": True}, "predictor": {"modality_embeddings": True}})
    mixed = model.sample_masks(mixed_batch([False, True, False, False]))
    loss, logs = model(mixed)
    video = frames_to_float(mixed.frames)
    videos = model._clip_losses(video[[0, 2, 3]], mixed.videos.masks)[0]
    image = model._clip_losses(video[1:2, :1], mixed.images.masks)[0]
    torch.testing.assert_close(loss, 0.75 * videos + 0.25 * image)
    assert torch.equal(loss, logs["prediction_loss"]) and model.count_tokens(mixed) == 3 * 32 + 16
    loss.backward()
    embeddings = (model.encoder.patch_embed.proj, model.encoder.patch_embed_img.proj)
    assert all(layer.weight.grad.any() for layer in embeddings)


@pytest.mark.parametrize("still", [False, True])
def test_a_batch_of_one_kind_runs_both_passes_and_only_its_own_counts(still):
    model = make_module(networks={"encoder": {"modality_embeddings": True}, "predictor": {"modality_embeddings": True}})
    batch = mixed_batch([still] * 4)
    loss, _ = model(model.sample_masks(batch))
    alone = ClipBatch(frames=batch.frames[:, :1] if still else batch.frames, seed=batch.seed)
    torch.testing.assert_close(loss, model(model.sample_masks(alone))[0])
    loss.backward()
    own, other = model.encoder.patch_embed.proj.weight.grad, model.encoder.patch_embed_img.proj.weight.grad
    assert own.any() == (not still) and other.any() == still  # both have gradients, as DDP requires


def test_images_without_an_embedding_of_their_own_are_clips_of_equal_frames():
    model, batch = make_module(), mixed_batch([True, False])
    plain = ClipBatch(frames=batch.frames, seed=batch.seed)
    assert torch.equal(model(model.sample_masks(batch))[0], model(model.sample_masks(plain))[0])
    with pytest.raises(ValueError, match=r"cannot be mixed with model\.regularizer or model\.motion"):
        networks = {"encoder": {"modality_embeddings": True}, "predictor": {"modality_embeddings": True}}
        make_module(networks=networks, regularizer=SIGReg()).sample_masks(batch)
