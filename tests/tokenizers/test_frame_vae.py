"""The V of World Models: its loss, and what it says of a frame."""

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
def test_the_module_minimizes_the_papers_loss_over_three_quarters_of_the_pixels(free_nats):
    torch.manual_seed(0)
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8], free_nats=free_nats).eval()
    loss, _ = TokenizerModule(network, OptimizerConfig())(ClipBatch(frames=clip()))
    video = clip().float().movedim(-1, 2) / 255
    mean, std = network.posterior(2 * video - 1)
    shown = (network.decode(mean) + 1) / 2
    squared = (shown - video).square().sum(dim=(2, 3, 4))
    prior, seen = (
        torch.distributions.Normal(*x) for x in ((torch.zeros_like(mean), torch.ones_like(std)), (mean, std))
    )
    divergence = torch.distributions.kl_divergence(seen, prior).sum(dim=(2, 3, 4))
    expected = (squared + divergence.clamp(min=free_nats * 6)).mean()
    torch.testing.assert_close(loss, expected * 4 / (3 * 16 * 16), rtol=1e-5, atol=0)


def test_below_the_floor_the_divergence_has_no_gradient():
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8])
    for scale, free in ((0.1, True), (10.0, False)):
        mean = torch.full((2, 3, 1, 1, 6), scale, requires_grad=True)
        network.kl_loss(FramePosterior(mean, torch.ones_like(mean))).backward()
        assert bool((mean.grad == 0).all()) == free


def test_latents_carry_noise_in_training_alone_and_in_the_measure_of_the_posterior():
    torch.manual_seed(0)
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8])
    video = clip().movedim(-1, 2).float() / 127.5 - 1
    assert not torch.equal(network(video).video, network(video).video)
    network.eval()
    assert torch.equal(network(video).video, network(video).video)
    posterior = network.posterior(video)
    draws = torch.stack([posterior.sample() for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), posterior.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(draws.std(0), posterior.std, rtol=0.1, atol=0)


def test_a_centered_network_encodes_the_difference_to_the_mean_frame():
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
def test_a_training_takes_the_mean_picture_from_its_first_batch_alone(tmp_path):
    first, second = ClipBatch(frames=clip()), ClipBatch(frames=255 - clip())
    module = TokenizerModule(
        FrameVAE((16, 16), latent_size=6, widths=[8, 8], subtract_mean_frame=True), OptimizerConfig()
    )
    fit(module, [first, second], tmp_path)
    expected = (clip().double() / 127.5 - 1).mean(dim=(0, 1)).movedim(-1, 0)
    torch.testing.assert_close(module.tokenizer.mean_picture.double(), expected)
    module.tokenizer.save_pretrained(tmp_path / "v")
    assert torch.equal(FrameVAE.from_pretrained(tmp_path / "v").mean_picture, module.tokenizer.mean_picture)


def test_rejects_a_size_with_too_few_halvings():
    with pytest.raises(ValueError, match=r"must divide image_size=12x16"):
        FrameVAE((12, 16), widths=[8, 8, 8])
