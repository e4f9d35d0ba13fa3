"""LPIPS equals that of torchmetrics, and Fréchet distances equal values computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from vwm.eval.perceptual import FVD, LPIPS, frechet_distance


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    """Random weights under the names of torchvision's AlexNet."""
    torch.manual_seed(0)
    with torch.device("meta"):
        features = alexnet(weights=None).features
    features = features.to_empty(device="cpu")
    for weight in features.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def test_lpips_equals_torchmetrics_lpips(alexnet_file: Path) -> None:
    lpips, torchmetrics_lpips = LPIPS(alexnet_file), _LPIPS(net="alex", pnet_rand=True)
    weights = torch.load(alexnet_file, weights_only=True)
    for stage in torchmetrics_lpips.net.children():
        for name, layer in stage.named_children():
            if hasattr(layer, "weight"):
                layer.load_state_dict({k: weights[f"features.{name}.{k}"] for k in ("weight", "bias")})
    x, y = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(lpips(x, y), torchmetrics_lpips(x, y).flatten(), rtol=1e-4)
    assert lpips(x, x).tolist() == [0.0] * 3


def test_rejects_foreign_files(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("other.pth", "missing.pth"):
        with pytest.raises(ValueError, match=r"(?s)no AlexNet weights.*--lpips.weights"):
            LPIPS(tmp_path / name)
    with pytest.raises(ValueError, match=r"(?s)no TorchScript network.*--fvd.weights"):
        FVD(tmp_path / "missing.pt")


def test_frechet_distance_of_a_shift_and_a_scaling_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator)
    assert float(frechet_distance(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(frechet_distance(x, x + 2)) == pytest.approx(12, abs=1e-4)
    # Scaling by 3 about the mean: tr(C + 9 C - 2 * 3 C) = 4 tr C.
    scaled = (x - x.mean(dim=0)) * 3 + x.mean(dim=0)
    assert float(frechet_distance(x, scaled)) == pytest.approx(4 * float(torch.cov(x.T).trace()), rel=1e-4)


class MeanColor(torch.nn.Module):
    """A replacement of I3D whose features are a clip's mean red, green and blue, in [-1, 1]."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and resize and return_features
        return video.mean(dim=[2, 3, 4])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_fvd_of_a_color_change_is_exact(tmp_path: Path) -> None:
    torch.jit.script(MeanColor()).save(str(tmp_path / "i3d.pt"))
    fvd, generator = FVD(tmp_path / "i3d.pt"), torch.Generator().manual_seed(0)
    clips = torch.randint(0, 100, (12, 9, 4, 4, 3), dtype=torch.uint8, generator=generator)
    assert fvd(clips, clips) == pytest.approx(0, abs=1e-6)
    assert fvd(clips, clips + 51) == pytest.approx(3 * 0.4**2, abs=1e-5)
    with pytest.raises(ValueError, match="9 frames or more, these have 8"):
        fvd(clips[:, :8], clips[:, :8])


def test_lpips_of_equal_clips_is_zero_and_small_frames_are_rejected(alexnet_file: Path) -> None:
    lpips = LPIPS(alexnet_file)
    clips = torch.randint(0, 255, (2, 3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert lpips.per_time_step(clips, clips).tolist() == [0.0] * 3
    assert float(lpips.per_time_step(clips, clips.flip(1)).max()) > 0
    with pytest.raises(ValueError, match="31x31"):
        lpips.per_time_step(clips[:, :, :16], clips[:, :, :16])
