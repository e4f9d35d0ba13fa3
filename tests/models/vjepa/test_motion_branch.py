"""The motion branch: its flow equals the motion, and training without labels finds it."""

import pytest
import torch
from einops import rearrange

from vwm.models.vjepa.motion_branch import MotionBranch, warp_by_flow


def make_moving_features(shift: tuple[int, int], channels: int = 16) -> torch.Tensor:
    """Two time steps of random features, the second shifted by (rows, columns): [1, 2, c, 8, 8]."""
    first = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.stack((first, first.roll(shift, dims=(2, 3))), dim=1)


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (2, 1)])
def test_the_flow_equals_the_motion_of_the_features(shift):
    branch = MotionBranch(16, 16)
    with torch.no_grad():
        branch.log_temperature.fill_(5.0)
        flow = branch.estimate_flow(make_moving_features(shift))
    inner = flow[0, :, 2:-2, 2:-2]  # features at the edge moved out of the image
    torch.testing.assert_close(inner[0], torch.full((4, 4), float(shift[1])), rtol=0, atol=1e-3)
    torch.testing.assert_close(inner[1], torch.full((4, 4), float(shift[0])), rtol=0, atol=1e-3)


def test_warping_by_the_flow_inverts_the_motion():
    features = make_moving_features((1, -2))
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0], flow[:, 1] = -2, 1
    warped = warp_by_flow(features[:, 1], flow)
    torch.testing.assert_close(warped[..., 2:-2, 2:-2], features[:, 0][..., 2:-2, 2:-2])


def test_training_finds_the_motion_of_pixels_without_labels():
    torch.manual_seed(0)
    noise = torch.rand(8, 3, 16, 16)
    first = torch.nn.functional.interpolate(noise, (64, 64), mode="nearest") * 2 - 1
    video = torch.stack((first, first.roll((8, 0), dims=(2, 3))), dim=1)  # one token of 8 pixels downward
    tokens = rearrange(video, "b t c (h p) (w q) -> b (t h w) (c p q)", p=8, q=8)
    branch = MotionBranch(tokens.shape[-1], 32, radius=1)
    optimizer = torch.optim.Adam(branch.parameters(), 1e-2)
    for _ in range(60):
        loss, _ = branch(tokens, video, (2, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        features = rearrange(branch.project(tokens), "b (t h w) c -> b t c h w", t=2, h=8)
        columns, rows = branch.estimate_flow(features)[:, :, 2:-2, 2:-2].mean(dim=(0, 2, 3)).tolist()
    assert abs(columns) < 0.1 and 0.8 < rows < 1.1


def test_rejects_a_single_time_step():
    with pytest.raises(ValueError, match="2 time steps"):
        MotionBranch(16)(torch.zeros(1, 16, 16), torch.zeros(1, 2, 3, 32, 32), (1, 4, 4))
