"""Matches in the layout of kyutai's rocket-science, as its published loader reads it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from drawer_episodes import level

from vwm.data.video_encoding import encode_video

KEYS = ["W", "A", "S", "D", "Q", "E", "Space", "LShiftKey", "LControlKey"]


def physics(time: int) -> dict[str, Any]:
    place = {"x": 100.0 + time, "y": -3.0, "z": 93.0}
    cars = [
        {"player_id": p, "location": {"x": p + time, "y": 0, "z": 17}, "attacker_player_id": -1}
        for p in (40, 10, 30, 20)
    ]
    game = {"time_remaining": 0.0, "score_blue": 1, "score_orange": 0, "is_overtime": False}
    return {"game": game, "ball": {"location": place, "velocity": place}, "cars": cars}


def write_match(folder: Path, sample: dict[str, bytes], **changes: Any) -> None:
    """Write two samples of a match, of 6 and 4 frames, the numbers 0 and 3 of its recording."""
    goal = {"event_type": 1, "event_name": "GoalScored", "master_sec": 2.4}
    clock = {"frames": 10, "duration": 0.5, "recording_offset_sec": 2.0, "anchors": [goal]}
    players = [{"player_id": 10 * (i + 1), "team": i // 2} | clock for i in range(4)]
    entry = {"match_id": "m7", "shard": "000/dataset_0.tar", "n_players": 4, "arena": "cs_p"}
    entry |= {"chunk_frames": [6, 4], "chunk_indices": [0, 3], "perspectives": players[::-1]} | changes
    (folder / "000").mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps({"total_samples": 1, "entries": [entry]}))
    members = {}
    for number, chunk in enumerate((0, 3)):
        grey = level(number).astype(np.uint8)
        for player in range(4):
            frames = np.broadcast_to((grey + 5 * player)[:, None, None, None], (len(grey), 16, 16, 3))
            keys = [json.dumps({"keys": [KEYS[player], KEYS[(t + player) % 9]]}) for t in range(len(grey))]
            start = f"m7_c{chunk:05d}.p{player}"
            members[f"{start}.mp4"] = encode_video(frames, 20)
            members[f"{start}.jsonl"] = "\n".join(keys).encode()
            members[f"{start}.physics.jsonl"] = "\n".join(json.dumps(physics(t)) for t in range(len(grey))).encode()
    with tarfile.open(folder / "000" / "dataset_0.tar", "w") as tar:
        for name, content in (members | sample).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
