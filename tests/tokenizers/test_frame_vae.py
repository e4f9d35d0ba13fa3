"""The frame VAE of World Models: its loss, its posterior, and the subtraction of the mean frame."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from vwm.data.clips import ClipBatch
from vwm.nn.optimizer import OptimizerConfig
from vwm.tokenizers.frame_vae import FramePosterior, FrameVAE
from vwm.tokenizers.module import TokenizerModule


def clip() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fit(module: TokenizerModule, batches: list[ClipBatch], folder: Path) -> None:
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))


@pytest.mark.parametrize("free_nats", [0.0, 0.5, 100.0])
def test_the_loss_is_that_of_world_models_divided_by_three_quarters_of_the_pixel_count(free_nats):
    torch.manual_seed(0)
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8], free_nats=free_nats).eval()
    loss, _ = TokenizerModule(network, OptimizerConfig())(ClipBatch(frames=clip()))
    video = clip().float().movedim(-1, 2) / 255
    mean, std = network.posterior(2 * video - 1)
    reconstruction = (network.decode(mean) + 1) / 2
    squared = (reconstruction - video).square().sum(dim=(2, 3, 4))
    prior, posterior = (
        torch.distributions.Normal(*x) for x in ((torch.zeros_like(mean), torch.ones_like(std)), (mean, std))
    )
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(dim=(2, 3, 4))
    expected = (squared + divergence.clamp(min=free_nats * 6)).mean()
    torch.testing.assert_close(loss, expected * 4 / (3 * 16 * 16), rtol=1e-5, atol=0)


def test_the_kl_divergence_has_no_gradient_below_the_free_nats():
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8])
    for scale, zero_gradient in ((0.1, True), (10.0, False)):
        mean = torch.full((2, 3, 1, 1, 6), scale, requires_grad=True)
        network.kl_loss(FramePosterior(mean, torch.ones_like(mean))).backward()
        assert bool((mean.grad == 0).all()) == zero_gradient


def test_latents_are_sampled_from_the_posterior_in_training_only():
    torch.manual_seed(0)
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8])
    video = clip().movedim(-1, 2).float() / 127.5 - 1
    assert not torch.equal(network(video).video, network(video).video)
    network.eval()
    assert torch.equal(network(video).video, network(video).video)
    posterior = network.posterior(video)
    samples = torch.stack([posterior.sample() for _ in range(2000)])
    torch.testing.assert_close(samples.mean(0), posterior.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(samples.std(0), posterior.std, rtol=0.1, atol=0)


def test_a_network_with_mean_subtraction_encodes_the_difference_to_the_mean_frame():
    torch.manual_seed(0)
    plain = FrameVAE((16, 16), latent_size=6, widths=[8, 8]).eval()
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8], subtract_mean_frame=True).eval()
    network.load_state_dict(plain.state_dict() | {"mean_picture": torch.zeros(3, 16, 16)})
    video = clip().movedim(-1, 2).float() / 127.5 - 1
    assert torch.equal(network(video).video, plain(video).video)
    network.initialize_from_data(video)
    mean = video.flatten(0, 1).sum(0) / 6
    torch.testing.assert_close(network(video).video, plain(video - mean).video + mean)
    torch.testing.assert_close(network.encode(video), plain.encode(video - mean))
    with pytest.raises(ValueError, match=r"got \[2, 3, 3, 8, 16\]"):
        network.initialize_from_data(video[..., :8, :])


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # Lightning's own use of torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # two batches in memory
def test_training_computes_the_mean_frame_from_the_first_batch_only(tmp_path):
    first, second = ClipBatch(frames=clip()), ClipBatch(frames=255 - clip())
    module = TokenizerModule(
        FrameVAE((16, 16), latent_size=6, widths=[8, 8], subtract_mean_frame=True), OptimizerConfig()
    )
    fit(module, [first, second], tmp_path)
    expected = (clip().double() / 127.5 - 1).mean(dim=(0, 1)).movedim(-1, 0)
    torch.testing.assert_close(module.tokenizer.mean_picture.double(), expected)
    module.tokenizer.save_pretrained(tmp_path / "v")
    assert torch.equal(FrameVAE.from_pretrained(tmp_path / "v").mean_picture, module.tokenizer.mean_picture)


def test_rejects_image_sizes_that_the_levels_do_not_divide():
    with pytest.raises(ValueError, match=r"must divide image_size=12x16"):
        FrameVAE((12, 16), widths=[8, 8, 8])
