"""Properties of tokenizer training: the loss terms, and which network each of them trains."""

from collections.abc import Iterator

import lightning as L
import pytest
import timm
import torch
from factories import randomize, tokenizer

from vwm.data.clips import ClipBatch
from vwm.nn.optimizer import OptimizerConfig
from vwm.tokenizers.adversarial import AdversarialLoss, PatchDiscriminator, adaptive_weight
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.module import TokenizerModule
from vwm.tokenizers.perceptual import PerceptualLoss

OPTIMIZER = OptimizerConfig(warmup=1, lr=1e-3)


def make_batch() -> ClipBatch:
    return ClipBatch(
        torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )


def vae(**changes) -> CausalVAE:
    torch.manual_seed(0)
    settings = {"latent_channels": 4, "patch_size": 2, "widths": [8, 8], "depths": [1, 1], **changes}
    return randomize(CausalVAE((16, 16), **settings))


class Batches:
    """A data loader of eight equal batches."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[ClipBatch]:
        return iter([make_batch()] * 8)


def adversarial(start: int = 0) -> AdversarialLoss:
    torch.manual_seed(1)
    return AdversarialLoss(start_step=start, width=4, layers=2)


def loss_of(module: TokenizerModule) -> torch.Tensor:
    torch.manual_seed(2)  # for the noise of the latents
    return module.train()(make_batch())[0]


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters()]


def test_the_adversarial_loss_has_no_effect_before_its_start_step():
    plain = TokenizerModule(vae(), OPTIMIZER, l1_weight=0.1)
    with_adversarial = TokenizerModule(vae(), OPTIMIZER, l1_weight=0.1, adversarial=adversarial(start=1))
    assert torch.equal(loss_of(plain), loss_of(with_adversarial))
    loss_of(plain).backward()
    loss_of(with_adversarial).backward()
    for one, other in zip(gradients(plain.tokenizer), gradients(with_adversarial.tokenizer), strict=True):
        assert torch.equal(one, other)
    # The gradients exist, for data-parallel training.
    assert all((g == 0).all() for g in gradients(with_adversarial.adversarial))


def test_generator_and_discriminator_losses_train_only_their_own_network():
    loss, reconstruction = adversarial(), (torch.rand(1, 3, 3, 16, 16) * 2 - 1).requires_grad_()
    video, last_layer = torch.rand(1, 3, 3, 16, 16) * 2 - 1, torch.ones(1, requires_grad=True)
    reconstruction_loss = (reconstruction * last_layer - video).square().mean()
    total, logs = loss(reconstruction * last_layer, video, reconstruction_loss, last_layer, step=0)
    total.backward()

    reference = adversarial()
    real_logits, fake_logits = reference.discriminator(
        torch.stack((video[0], reconstruction[0])).transpose(1, 2).detach()
    )[:, None]
    ((1 - real_logits).relu().mean() + (1 + fake_logits).relu().mean()).div(2).backward()
    for one, other in zip(gradients(loss), gradients(reference), strict=True):
        torch.testing.assert_close(one, other)

    fake = reconstruction.detach().clone().requires_grad_()
    generator = -adversarial().discriminator(fake.transpose(1, 2)).mean()
    generator.backward()
    torch.testing.assert_close(reconstruction.grad, 0.5 * logs["adversarial_scale"] * fake.grad)


def test_the_adaptive_weight_equalizes_gradient_norms_in_the_last_layer():
    last_layer = torch.tensor([3.0, 4.0], requires_grad=True)
    assert adaptive_weight(last_layer.square().sum(), 2 * last_layer.sum(), last_layer).item() == pytest.approx(
        10 / 8**0.5, rel=1e-4
    )
    assert adaptive_weight(last_layer.square().sum(), 0 * last_layer.sum(), last_layer).item() == 1e4


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # Lightning's own use of torch
def test_the_trainer_counts_tokenizer_steps_and_trains_both_networks(tmp_path):
    module = TokenizerModule(vae(), OPTIMIZER, adversarial=adversarial(start=2))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = L.Trainer(
        max_steps=5,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, Batches(), Batches())
    assert trainer.global_step == 5
    assert not any(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert {"train/adversarial", "train/discriminator"} <= set(trainer.callback_metrics)


def test_only_the_tokenizer_is_exported():
    module = TokenizerModule(vae(), OPTIMIZER, adversarial=adversarial())
    assert module.networks() == {"tokenizer": module.tokenizer}


def test_the_validation_loss_excludes_the_adversarial_loss():
    module = TokenizerModule(vae(), OPTIMIZER, adversarial=adversarial()).eval()
    with torch.no_grad():
        assert torch.equal(module(make_batch())[0], TokenizerModule(vae(), OPTIMIZER).eval()(make_batch())[0])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_discriminator_returns_logits_for_every_frame(frames):
    assert PatchDiscriminator(4, 2)(torch.rand(2, 3, frames, 16, 32)).shape == (2, 1, frames, 4, 8)


def test_logs_contain_statistics_of_the_bottleneck():
    assert {"psnr", "penalty", "latent_std"} == set(TokenizerModule(vae(), OPTIMIZER)(make_batch())[1])
    assert {"psnr", "penalty", "perplexity"} == set(TokenizerModule(tokenizer(), OPTIMIZER)(make_batch())[1])


def test_a_perceptual_loss_is_loaded_from_a_file_and_excluded_from_checkpoints(tmp_path):
    torch.manual_seed(3)
    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "weights.pth")
    loss = PerceptualLoss("resnet10t", tmp_path / "weights.pth", weight=0.5)
    x = torch.rand(1, 2, 3, 32, 32) * 2 - 1
    assert loss(x, x) == 0 < loss(-x, x)
    reconstruction = (-x).requires_grad_()
    loss(reconstruction, x).backward()
    assert reconstruction.grad.abs().sum() > 0
    module = TokenizerModule(vae(), OPTIMIZER, perceptual=loss)
    assert set(module.state_dict()) == set(TokenizerModule(vae(), OPTIMIZER).state_dict())
    plain, logs = loss_of(TokenizerModule(vae(), OPTIMIZER)), module(make_batch())[1]
    assert loss_of(module) > plain and logs["perceptual"] > 0


def test_rejects_missing_and_foreign_perceptual_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="leave the loss out"):
        PerceptualLoss("resnet10t", tmp_path / "none.pth")
    torch.save({"some": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name in ("other.pth", "broken.safetensors"):
        with pytest.raises(ValueError, match="no weights of resnet10t"):
            PerceptualLoss("resnet10t", tmp_path / name)


def test_an_adversarial_loss_requires_a_last_layer():
    with pytest.raises(ValueError, match="last_layer"):
        TokenizerModule(torch.nn.Identity(), OPTIMIZER, adversarial=adversarial())


@pytest.mark.parametrize("codebook", [[5, 5, 4], 36])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_tokenizer_trains_with_weights_of_every_precision(codebook, dtype) -> None:
    """As with ``--trainer.precision bf16-true``, ``16-true`` and ``64-true``."""
    module = TokenizerModule(tokenizer(codebook=codebook), optimizer=OPTIMIZER)
    torch.nn.Module.to(module, dtype)
    loss = loss_of(module)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
