"""Oasis's networks: causal, predicted from cached keys as from the whole window, with the published schedule."""

import pytest
import torch
from published_worlds import OASIS_IMAGE, oasis_networks, oasis_world
from torch import Tensor

from vwm.core.components import rebuild_network
from vwm.core.frame_window import FrameWindow
from vwm.core.spaces import ActionSpace
from vwm.models.oasis.actions import (
    PUBLISHED_ACTIONS,
    from_published_actions,
    minecraft_actions,
    to_published_actions,
)
from vwm.models.oasis.network import OasisDiT
from vwm.models.oasis.sampling import OasisSampling, ddim, sample_next_latent, signal_shares
from vwm.models.oasis.simulator import OasisSimulator
from vwm.models.oasis.vit_vae import OasisViTVAE


def clip(frames: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise levels and actions for the small network, in float64."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, frames, 4, 8, 4, generator=generator, dtype=torch.float64)
    levels = torch.randint(0, 1000, (batch, frames), generator=generator)
    return latents, levels, torch.rand(batch, frames, 25, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> OasisDiT:
    return oasis_networks()[1].double()


def test_a_frame_depends_on_itself_and_on_earlier_ones(network):
    latents, levels, actions = clip(4)
    before = network(latents, levels, actions)
    for changed in ("latents", "level", "actions"):
        others = {"latents": latents.clone(), "level": levels.clone(), "actions": actions.clone()}
        others[changed][:, 2] = others[changed].flip(0)[:, 2]
        after = network(**others)
        assert torch.equal(after[:, :2], before[:, :2])
        assert not torch.isclose(after[:, 2:], before[:, 2:]).all(dim=(0, 2, 3, 4)).any()


def test_a_sampled_latent_equals_that_of_the_whole_window_in_every_step(network):
    """The published loop, which computes all frames again in every step, with one world that has a frame less."""
    latents, _, actions = clip(4)
    known = torch.tensor([[False, True, True], [True, True, True]])
    sampling = OasisSampling(steps=3, stabilization=20)
    noise = latents[:, 3]
    sampled = sample_next_latent(
        network, FrameWindow(latents[:, :3], actions[:, :3], known), actions[:, 3], noise, sampling
    )
    for world, first in enumerate((1, 0)):
        frames = latents[world : world + 1, first:3]

        def predict(x: Tensor, level: int, world=world, first=first, frames=frames) -> Tensor:
            levels = torch.full((1, 4 - first), 19)
            levels[:, -1] = level
            whole = torch.cat((frames, x[:, None]), dim=1)
            return network(whole, levels, actions[world : world + 1, first:])[:, -1]

        expected = ddim(predict, noise[world : world + 1], sampling.steps)
        torch.testing.assert_close(sampled[world : world + 1], expected, rtol=0, atol=1e-10)


def test_frames_beyond_the_window_are_forgotten():
    world = oasis_world()
    context = torch.randint(0, 256, (1, 6, *OASIS_IMAGE, 3), dtype=torch.uint8)
    state, _ = world.reset(context)
    other, _ = world.reset(torch.cat((255 - context[:, :3], context[:, 3:]), dim=1))  # a window of 4: 3 before the next
    action = torch.zeros(1, 25)
    assert torch.equal(world.step(state, action)[1].latent, world.step(other, action)[1].latent)
    shorter, _ = world.reset(context[:, 4:])
    assert not torch.equal(world.step(state, action)[1].latent, world.step(shorter, action)[1].latent)


def test_the_schedule_is_the_published_one():
    """Values of the published code's own table."""
    shares = signal_shares()
    expected = torch.tensor(
        [0.9996997117996216, 0.9953204989433289, 0.4999997913837433, 0.00030028686160221696, 3.002830055720551e-07]
    )
    torch.testing.assert_close(shares[[0, 14, 499, 998, 999]], expected, rtol=1e-5, atol=0)
    # A network that knows the clean data is followed to it.
    clean, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def predict(x: Tensor, level: int) -> Tensor:
        share = shares[level].double()
        return (share.sqrt() * x - clean) / (1 - share).sqrt()

    for steps in (1, 7, 10):
        torch.testing.assert_close(ddim(predict, noise, steps), clean, rtol=0, atol=1e-6)


def test_keys_and_camera_have_their_published_columns():
    space = minecraft_actions()
    action = torch.zeros(space.size)
    action[space.names.index("keys.forward")] = 1
    action[space.names.index("camera.x")], action[space.names.index("camera.y")] = 0.25, -0.5
    published = to_published_actions(action)
    assert {name: value for name, value in zip(PUBLISHED_ACTIONS, published.tolist(), strict=True) if value} == {
        "forward": 1.0,
        "cameraY": 0.25,  # yaw, to the right
        "cameraX": -0.5,  # pitch, down
    }
    assert torch.equal(from_published_actions(published), action)
    assert len(PUBLISHED_ACTIONS) == 25 and len(set(space.parts[0].names)) == 23


def test_the_autoencoder_scales_its_latents_and_is_blind_to_other_frames():
    tokenizer = oasis_networks()[0].double()
    video = torch.rand(1, 2, 3, *OASIS_IMAGE, dtype=torch.float64) * 2 - 1
    latents = tokenizer.encode(video)
    assert latents.shape == (1, 2, 4, 8, 4)
    torch.testing.assert_close(tokenizer.encode(video[:, 1:]), latents[:, 1:], rtol=0, atol=1e-12)
    unscaled = rebuild_network(tokenizer, latent_scale=1.0).double()
    unscaled.load_state_dict(tokenizer.state_dict())
    torch.testing.assert_close(unscaled.encode(video) * 0.07843137255, latents)
    torch.testing.assert_close(unscaled.decode(latents / 0.07843137255), tokenizer.decode(latents))


def test_rejects_what_does_not_fit():
    tokenizer, dynamics = oasis_networks()
    with pytest.raises(ValueError, match=r"takes \[2, 4\] x 4"):
        OasisSimulator(tokenizer, OasisDiT((2, 4), 4, width=16, depth=1, heads=1), minecraft_actions())
    with pytest.raises(ValueError, match="got 4 discrete actions"):
        OasisSimulator(tokenizer, dynamics, ActionSpace("discrete", 4))
    for sampling in (OasisSampling(steps=0), OasisSampling(stabilization=1001), OasisSampling(stabilization=1.5)):
        with pytest.raises(ValueError, match=r"sampling\.(steps|stabilization) must"):
            OasisSimulator(tokenizer, dynamics, minecraft_actions(), sampling=sampling)
    for changes in ({"image_size": (15, 32)}, {"width": 20}):
        with pytest.raises(ValueError, match="must be"):
            OasisViTVAE(**{"image_size": OASIS_IMAGE, "patch_size": 4, "heads": 1, **changes})
    for changes in ({"grid": (3, 8)}, {"width": 18}, {"window": 1}):
        with pytest.raises(ValueError, match="must be"):
            OasisDiT(**{"grid": (4, 8), "width": 16, "depth": 1, "heads": 1, **changes})
