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
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import ContextBlockMaskSampler, MultiBlockMaskSampler
from vwm.models.vjepa.module import (
    EMAMomentumSchedule,
    VJEPAModule,
    gather_tokens,
    normalize_features,
    subtract_position_mean,
    update_target_encoder,
)
from vwm.models.vjepa.motion_branch import MotionBranch
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig

SIZES = {"image_size": (16, 16), "frames": 4, "tubelet": 2, "patch_size": 4, "heads": 2, "depth": 2}


def make_module(**settings) -> VJEPAModule:
    torch.manual_seed(0)
    encoder = randomize(VideoEncoder(width=24, **SIZES))
    predictor = randomize(MaskedPredictor(encoder_width=24, width=16, **SIZES))
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
