"""IntPhys 2: pairs from the table and the videos of a split, by either name of its columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.data.video_encoding import encode_video
from vwm.eval import surprise_evaluation
from vwm.eval.intphys2 import is_intphys2_folder, read_intphys2_pairs, resize_middle
from vwm.eval.surprise import SURPRISE_REPORT_FILE, write_surprise_report

TYPES = ("1_Possible", "1_Impossible", "2_Possible", "2_Impossible")
CONDITIONS = ("permanence", "immutability_texture", "continuity_swap")


def write_split(folder: Path, name_column: str, scenes: int = 3, skip: int | None = None) -> Path:
    """Videos of 32x48 pixels and 9 frames; their brightness jumps at frame 6 where they are impossible."""
    (folder / "Videos").mkdir(parents=True)
    rows = []
    for scene in range(scenes):
        for number, kind in enumerate(TYPES):
            frames = np.full((9, 32, 48, 3), 40 + 20 * scene, np.uint8)
            if "Impossible" in kind:
                frames[6:] += 60
            name = f"scene{scene}_{number}"
            (folder / "Videos" / f"{name}.mp4").write_bytes(encode_video(frames, 60))
            row = {"SceneIndex": scene, "type": kind, "condition": CONDITIONS[scene % 3]}
            row |= {"Difficulty": ("Easy", "Hard")[scene % 2], "Camera": "Fixed"}
            rows.append(row | {name_column: f"Videos/{name}.mp4" if name_column == "file_name" else name})
    rows = [row for number, row in enumerate(rows) if number != skip]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(reversed(rows))
    return folder


@pytest.mark.parametrize("name_column", ["file_name", "filename"])
def test_pairs_of_a_scene_and_number_are_read_in_the_size_of_the_model(tmp_path, name_column):
    folder = write_split(tmp_path / "Main", name_column)
    assert is_intphys2_folder(str(folder)) and not is_intphys2_folder(str(tmp_path))
    pairs = read_intphys2_pairs(folder, (16, 16), frame_step=2)
    assert len(pairs) == 6 and pairs.possible.shape == (6, 5, 16, 16, 3)
    assert pairs.properties == ("continuity",) * 2 + ("immutability",) * 2 + ("permanence",) * 2
    assert pairs.trial_groups.tolist() == [0, 0, 1, 1, 2, 2] and pairs.violation_frame is None
    possible, impossible = (torch.cat(list(clips.split(4))) for clips in (pairs.possible, pairs.impossible))
    change = (impossible.int() - possible.int()).float().mean(dim=(2, 3, 4))
    assert change[:, :3].abs().max() < 3 and (change[:, 3:] - 60).abs().max() < 3  # frames 0, 2, 4 and 6, 8
    assert read_intphys2_pairs(folder, (16, 16), by="Difficulty", limit=3).properties == ("Easy", "Easy", "Hard")


def test_a_scorer_of_jumps_wins_every_pair_and_each_video_is_decoded_once(tmp_path):
    pairs = read_intphys2_pairs(write_split(tmp_path / "Debug", "filename"), (16, 16), frame_step=1)
    batches = []

    def scorer(frames: torch.Tensor) -> torch.Tensor:
        batches.append(len(frames))
        return (frames[:, 2:].float() - frames[:, :-2].float()).abs().mean(dim=(2, 3, 4))

    report = write_surprise_report(scorer, pairs, tmp_path / "out", batch_size=4)
    assert batches == [4, 2, 4, 2]
    assert report["results"]["all"]["mean"]["accuracy"]["value"] == 1 and report["results"]["all"]["trials"] == 3
    assert report["curves"]["permanence"]["impossible"]["offset"] == [2, 3, 4, 5, 6, 7, 8]
    saved = json.loads((tmp_path / "out" / SURPRISE_REPORT_FILE).read_text())
    assert saved["violation_known"] is False and saved["before_violation"] == 0


def test_the_next_command_is_one_that_reads_the_videos(tmp_path, monkeypatch, capsys):
    folder = write_split(tmp_path / "Main", "filename", scenes=1)
    monkeypatch.setattr(surprise_evaluation, "load_surprise_scorer", lambda *_: JumpScorer())
    surprise_evaluation.evaluate_surprise(tmp_path, str(folder), tmp_path / "out", device="cpu", frame_step=1)
    assert f"vwm surprise {tmp_path} {folder} --by Difficulty" in capsys.readouterr().out


class JumpScorer:
    image_size = (16, 16)

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return (frames[:, 2:].float() - frames[:, :-2].float()).abs().mean(dim=(2, 3, 4))

    def frame_times(self, frames: int) -> list[int]:
        return list(range(2, frames))


def test_frames_keep_their_shape_around_the_middle():
    frames = np.zeros((1, 4, 12, 3), np.uint8)
    frames[:, :, 4:8] = 200
    assert (resize_middle(frames, (8, 8)) == 200).all() and resize_middle(frames, (4, 12)).shape == (1, 4, 12, 3)


def test_what_is_missing_is_named(tmp_path):
    folder = write_split(tmp_path / "Main", "filename", scenes=1, skip=1)
    with pytest.raises(ValueError, match="scene 0 has 1 videos 1_Possible and 0 1_Impossible"):
        read_intphys2_pairs(folder, (16, 16))
    with pytest.raises(ValueError, match="has no column Occluder, only SceneIndex, type"):
        read_intphys2_pairs(folder, (16, 16), by="Occluder")
    table = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(table.replace("1_Possible", "Possible"))
    with pytest.raises(ValueError, match="type 'Possible' is none of 1_Possible"):
        read_intphys2_pairs(folder, (16, 16))
    text = "\n".join(line for line in table.splitlines() if "1_" not in line)
    (folder / "metadata.csv").write_text(text.replace("scene0_3", "../../outside"))
    (tmp_path.parent / "outside.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"there is no video \.\./\.\./outside"):
        read_intphys2_pairs(folder, (16, 16))
    (folder / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"no metadata\.csv; the held-out split"):
        read_intphys2_pairs(folder, (16, 16))
