"""Surprise: accuracy 1 for a perfect scorer, chance for a constant one and for scorers without memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.envs.sprite_worlds import PHYSICAL_PROPERTIES, make_quadruple
from vwm.eval.surprise import (
    ALL_PROPERTIES,
    SURPRISE_PLOT_FILE,
    SURPRISE_REPORT_FILE,
    SURPRISE_TABLE_FILE,
    ViolationPairs,
    align_to_violation,
    frame_difference_score,
    measure_surprise,
    pairwise_auroc,
    pairwise_wins,
    read_violation_pairs,
    score_clips,
    wilson_interval,
    write_surprise_report,
)


def sprite_pairs(folder: Path, quadruples: int = 3) -> ViolationPairs:
    """Write and read two pairs per quadruple of every physical property."""
    with ShardWriter(folder / "shard-000000.tar") as writer:
        number = 0
        for i in range(quadruples):
            for property_name in PHYSICAL_PROPERTIES:
                quadruple = make_quadruple(property_name, np.random.default_rng(i), 16)
                for k in (0, 1):
                    metadata = {
                        "property": property_name,
                        "pair": number,
                        "quadruple": number // 2,
                        "violation_frame": quadruple.violation,
                    }
                    writer.write(
                        f"{number:03d}-b", quadruple.impossible[k].episode(property_name, possible=False, **metadata)
                    )
                    writer.write(
                        f"{number:03d}-a", quadruple.possible[k].episode(property_name, possible=True, **metadata)
                    )
                    number += 1
    return read_violation_pairs(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ViolationPairs:
    return sprite_pairs(tmp_path_factory.mktemp("pairs"))


def make_oracle(pairs: ViolationPairs) -> Any:
    """A scorer with surprise 1 in the frames where an impossible clip differs from its possible one."""
    pair_of_clip = {clip.numpy().tobytes(): k for k, clip in enumerate(pairs.impossible)}

    def scorer(frames: Tensor) -> Tensor:
        scores = torch.zeros(frames.shape[:2])
        for row, clip in zip(scores, frames, strict=True):
            if (k := pair_of_clip.get(clip.numpy().tobytes())) is not None:
                row[:] = (clip != pairs.possible[k]).flatten(1).any(dim=1)
        return scores

    return scorer


def constant_scorer(frames: Tensor) -> Tensor:
    return torch.ones(len(frames), 5)


# ------------------------------------------------------------------------------------------------------ numbers


def test_accuracy_is_1_for_a_perfect_scorer_and_chance_for_a_constant_one(
    pairs: ViolationPairs, tmp_path: Path
) -> None:
    for scorer, rate in ((make_oracle(pairs), 1.0), (constant_scorer, 0.5)):
        report = write_surprise_report(scorer, pairs, tmp_path / "out", batch_size=5)
        assert set(report["results"]) == {*PHYSICAL_PROPERTIES, ALL_PROPERTIES}
        for name, row in report["results"].items():
            assert row["pairs"] == (18 if name == ALL_PROPERTIES else 6) and row["trials"] == row["pairs"] // 2
            for by in ("mean", "max"):
                assert row[by]["accuracy"]["value"] == row[by]["auroc"] == rate
                assert row[by]["accuracy"]["low"] < rate and row[by]["accuracy"]["high"] >= rate
        assert report["before_violation"] == 0


def test_the_mean_of_frame_or_frame_pair_scores_has_chance_accuracy(pairs: ViolationPairs) -> None:
    def brightness(frames: Tensor) -> Tensor:
        return frames.long().sum(dim=(2, 3, 4)).double()

    def change(frames: Tensor) -> Tensor:
        return (frames[:, 1:].long() - frames[:, :-1].long()).abs().sum(dim=(2, 3, 4)).double()

    for scorer in (brightness, change):
        possible, impossible = (score_clips(scorer, f, 4, "") for f in (pairs.possible, pairs.impossible))
        report = measure_surprise(possible, impossible, pairs.properties, pairs.trial_groups)
        for row in report.values():
            assert row["mean"]["accuracy"]["value"] == 0.5
    assert frame_difference_score(pairs.possible[:2]).shape == (2, 15)
    torch.testing.assert_close(frame_difference_score(pairs.possible), change(pairs.possible) / (64 * 64 * 3))


def test_ties_count_half_in_wins_and_auroc_compares_all_pairs() -> None:
    possible, impossible = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0])
    assert pairwise_wins(possible, impossible).tolist() == [1, 0.5, 0]
    assert pairwise_wins(possible, possible * (1 + 2e-7)).tolist() == [0.5] * 3  # rounding
    assert pairwise_wins(possible, possible * (1 + 1e-5)).tolist() == [1] * 3
    # 2 against 1 2 3: 1 + 1/2 + 0, twice; 1 against 1 2 3: 1/2
    assert pairwise_auroc(possible, impossible) == pytest.approx((1.5 + 1.5 + 0.5) / 9)
    assert pairwise_auroc(possible, impossible) + pairwise_auroc(impossible, possible) == pytest.approx(1)


@pytest.mark.parametrize(("rate", "trials"), [(0.0, 10), (0.5, 40), (0.9, 100), (1.0, 7)])
def test_wilson_interval_bounds_are_1_96_standard_errors_away(rate: float, trials: int) -> None:
    value, low, high = wilson_interval(rate, trials)
    assert value == rate and 0 <= low <= rate <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:  # both ends are 1.96 of their own standard errors away
        assert abs(rate - bound) / (bound * (1 - bound) / trials) ** 0.5 == pytest.approx(1.95996, rel=1e-4)
    assert wilson_interval(rate, 4 * trials).high - wilson_interval(rate, 4 * trials).low < high - low


def test_curves_are_aligned_to_each_violation() -> None:
    scores = torch.tensor([[0.0, 0, 5, 1], [0, 7, 1, 1]])
    curve = align_to_violation(scores, torch.tensor([6, 4]), torch.tensor([2, 4, 6, 8]))
    assert curve["offset"] == [-4, -2, 0, 2, 4]
    assert curve["mean"] == [0, 0, 6, 1, 1]
    assert curve["stderr"] == pytest.approx([0, 0, 1 / 2**0.5, 0, 0])


def test_properties_are_scored_separately() -> None:
    possible = torch.tensor([[0.0], [0], [1], [1]])
    impossible = torch.tensor([[1.0], [1], [0], [1]])
    report = measure_surprise(possible, impossible, ["a", "a", "b", "b"], torch.tensor([0, 1, 2, 2]))
    assert [report[k]["mean"]["accuracy"]["value"] for k in ("a", "b", ALL_PROPERTIES)] == [1, 0.25, 0.625]
    assert [report[k]["trials"] for k in ("a", "b", ALL_PROPERTIES)] == [2, 1, 3]
    assert ALL_PROPERTIES not in measure_surprise(possible, impossible, ["a"] * 4, torch.arange(4))


# ------------------------------------------------------------------------------------------------------- report


def test_the_report_is_complete_and_replaces_only_reports(pairs: ViolationPairs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_surprise_report(constant_scorer, pairs, out)
    report = write_surprise_report(make_oracle(pairs), pairs, out, title="oracle")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [SURPRISE_REPORT_FILE, SURPRISE_TABLE_FILE, SURPRISE_PLOT_FILE]
    )
    assert json.loads((out / SURPRISE_REPORT_FILE).read_text()) == report
    text = (out / SURPRISE_TABLE_FILE).read_text()
    assert "| permanence | 6 | 100.0% (43.9 to 100.0) | 1.000 |" in text and "# Surprise of oracle" in text
    assert "permanence, frame difference | 6 | 50.0%" in text and "uses later frames" not in text
    with Image.open(out / SURPRISE_PLOT_FILE) as image:
        assert image.width > 1000
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="exists and is no report"):
        write_surprise_report(constant_scorer, pairs, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_report_warns_about_a_scorer_that_uses_later_frames(pairs: ViolationPairs, tmp_path: Path) -> None:
    def lookahead_scorer(frames: Tensor) -> Tensor:
        return make_oracle(pairs)(frames).flip(1).cumsum(dim=1).flip(1)

    report = write_surprise_report(lookahead_scorer, pairs, tmp_path / "out")
    assert (
        report["before_violation"] > 0 and "uses later frames" in (tmp_path / "out" / SURPRISE_TABLE_FILE).read_text()
    )


def test_frame_times_assign_scores_to_frames(pairs: ViolationPairs, tmp_path: Path) -> None:
    def every_other(frames: Tensor) -> Tensor:
        return make_oracle(pairs)(frames)[:, 1::2]

    report = write_surprise_report(every_other, pairs, tmp_path / "out", frame_times=range(1, 16, 2))
    curve = report["curves"]["permanence"]["impossible"]
    assert curve["offset"][0] < 0 < curve["offset"][-1]
    assert all(m == 0 for o, m in zip(curve["offset"], curve["mean"], strict=True) if o < 0)
    assert report["before_violation"] == 0
    with pytest.raises(ValueError, match="returns 8 values per clip, but frame_times names 3"):
        write_surprise_report(every_other, pairs, tmp_path / "out", frame_times=[1, 2, 3])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"must be \[b, s\] with b=3"),
        (torch.zeros(3, 0), r"must be \[b, s\]"),
        (torch.tensor([[0.0], [float("nan")], [1]]), "must be finite, got nan"),
    ],
)
def test_rejects_scores_of_a_wrong_shape_or_non_finite(scores: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_clips(lambda frames: scores, torch.zeros(3, 4, 8, 8, 3, dtype=torch.uint8), 8, "x")


# ------------------------------------------------------------------------------------------------------ reading


def test_read_pairs_equal_the_written_ones(pairs: ViolationPairs, tmp_path: Path) -> None:
    assert len(pairs) == 18 and pairs.possible.shape == (18, 16, 64, 64, 3)
    quadruple = make_quadruple("continuity", np.random.default_rng(1), 16)
    row = 2 * (3 + 1)
    for k in (0, 1):
        assert (pairs.possible[row + k].numpy() == quadruple.possible[k].frames).all()
        assert (pairs.impossible[row + k].numpy() == quadruple.impossible[k].frames).all()
        assert pairs.properties[row + k] == "continuity" and pairs.violation_frame[row + k] == quadruple.violation
    assert pairs.trial_groups.tolist() == [i // 2 for i in range(18)]
    sprite_pairs(tmp_path / "more")
    limited = read_violation_pairs(tmp_path / "more", limit=4)
    assert len(limited) == 4 and (limited.possible == pairs.possible[:4]).all()


def write_clips(folder: Path, *metas: dict[str, Any], lengths: tuple[int, ...] = ()) -> None:
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for i, meta in enumerate(metas):
            frames = np.zeros((lengths[i] if lengths else 4, 8, 8, 3), np.uint8)
            writer.write(f"{i}", Episode(frames, meta=meta))


def test_rejects_clips_that_are_not_pairs(tmp_path: Path) -> None:
    possible = {"pair": 0, "possible": True, "property": "x", "violation_frame": 2}
    impossible = {**possible, "possible": False}
    write_clips(tmp_path / "good", possible, impossible)
    assert read_violation_pairs(tmp_path / "good").trial_groups.tolist() == [0]
    write_clips(tmp_path / "a", {"fps": 3})
    with pytest.raises(ValueError, match="no pair, possible, property, violation_frame, so it belongs to no pair"):
        read_violation_pairs(tmp_path / "a")
    write_clips(tmp_path / "b", possible)
    with pytest.raises(ValueError, match="pair 0 has no impossible clip"):
        read_violation_pairs(tmp_path / "b")
    write_clips(tmp_path / "c", possible, possible)
    with pytest.raises(ValueError, match="pair 0 has two clips with possible=True"):
        read_violation_pairs(tmp_path / "c")
    write_clips(tmp_path / "d", possible, impossible, lengths=(4, 5))
    with pytest.raises(ValueError, match="one length and size"):
        read_violation_pairs(tmp_path / "d")
