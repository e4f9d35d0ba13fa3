"""Descriptions of latent actions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vwm.data.clip_folders import make_clip_dataset
from vwm.eval import action_descriptions as module
from vwm.eval.action_descriptions import MAX_DESCRIPTION_LENGTH, describe_actions, describe_motion, estimate_scene_shift
from vwm.models.genie.simulator import GenieSimulator


@pytest.mark.parametrize("move", [(0, 0), (3, 0), (0, -4), (-2, 5), (5, 5)])
def test_estimate_scene_shift_finds_the_shift(move: tuple[int, int]) -> None:
    wide = torch.randint(0, 255, (2, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, after = wide[:, 8:40, 8:40], wide.roll(move, dims=(1, 2))[:, 8:40, 8:40]
    assert estimate_scene_shift(before, after).tolist() == [list(map(float, move))] * 2


def test_a_static_figure_in_the_center_does_not_hide_scrolling() -> None:
    wide = torch.randint(0, 255, (1, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, after = wide[:, 8:40, 8:40].clone(), wide.roll(-4, dims=2)[:, 8:40, 8:40].clone()
    for frame in (before, after):
        frame[:, 12:20, 12:20] = 255
    assert estimate_scene_shift(before, after).tolist() == [[0.0, -4.0]]


def test_large_images_are_downsampled() -> None:
    scene = torch.randint(0, 255, (1, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    large = scene.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert estimate_scene_shift(large[:, 16:144, 16:144], large.roll(8, dims=1)[:, 16:144, 16:144]).tolist() == [
        [8.0, 0.0]
    ]


def test_uniform_images_have_no_shift() -> None:
    plain = torch.full((1, 16, 16, 3), 90, dtype=torch.uint8)
    assert estimate_scene_shift(plain, plain + 20).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("shift", "change", "text"),
    [
        ((0.0, -2.12), 9.0, "view moves right 2.1 px"),
        ((-3.0, 1.0), 9.0, "view down 3.0, left 1.0 px"),
        ((0.1, 0.1), 0.0, "no visible change"),
        ((0.1, 0.1), 4.0, "change, view stays"),
    ],
)
def test_motion_is_described_by_direction_and_distance(shift: tuple[float, float], change: float, text: str) -> None:
    assert describe_motion(torch.tensor(shift), change) == text
    assert len(text) <= MAX_DESCRIPTION_LENGTH


def test_latent_actions_are_described_by_coinciding_recorded_actions(
    genie: Callable[..., GenieSimulator], write_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clip_dataset(str(write_shards()), clip_length=6)
    recorded = torch.stack([torch.as_tensor(clips[0, i]["actions"].copy()) for i in range(len(clips.order))])[:, :-1]
    monkeypatch.setattr(module, "infer_latent_actions", lambda *_: torch.where(recorded == 1, 3, 0))
    texts = describe_actions(genie(), clips)
    other_counts = torch.bincount(recorded[recorded != 1])
    share = int(other_counts.max()) / int(other_counts.sum())
    assert texts[1:] == ["not seen", "not seen", "RIGHT 100%"]
    assert texts[0].endswith(f"{share:.0%}") == (share > 0.5)


def test_equal_descriptions_are_numbered() -> None:
    texts = ["view moves right 0.4 px", "not seen", "change, view stays", "not seen", "change, view stays"]
    assert module._number_equal_texts(texts) == [
        "view moves right 0.4 px", "not seen", "change, view stays (1)", "not seen", "change, view stays (2)",
    ]  # fmt: skip


def test_without_recorded_actions_the_motion_is_described(
    genie: Callable[..., GenieSimulator], write_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clip_dataset(str(write_shards(actions=False, moving=False)), clip_length=6)
    monkeypatch.setattr(
        module, "infer_latent_actions", lambda _, frames, __: torch.zeros(len(frames), 5, dtype=torch.int64)
    )
    assert describe_actions(genie(), clips) == ["no visible change"] + ["not seen"] * 3


def test_labeled_actions_keep_their_names(
    genie: Callable[..., GenieSimulator], write_shards: Callable[..., Path]
) -> None:
    clips = make_clip_dataset(str(write_shards()), clip_length=6)
    assert describe_actions(genie(labeled=True), clips) == ["STAY", "RIGHT", "DOWN", "LEFT"]
    assert all(len(text) <= MAX_DESCRIPTION_LENGTH for text in describe_actions(genie(), clips))
