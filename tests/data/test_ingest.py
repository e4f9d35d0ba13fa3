"""Ingest: exact frames at exact times, each once, reported errors, and the same bytes after an interruption."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from factories import composite_space
from numpy.typing import NDArray

from vwm.data import shard_ingest, video_episodes
from vwm.data.action_files import read_action_file
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array, read_episode_metadata
from vwm.data.source_frame import SourceFrame
from vwm.data.video import open_video
from vwm.data.video_episodes import resample_frames, resize_and_crop
from vwm.tokenizers.corpus import ingest_videos

STRIPES = 8


def numbered(count: int, height: int = 32, width: int = 64) -> NDArray[np.uint8]:
    """Frames with their number in binary, as eight upright stripes."""
    bits = np.arange(count)[:, None] >> np.arange(STRIPES) & 1
    stripes = np.repeat(bits * 200 + 20, width // STRIPES, axis=1).astype(np.uint8)
    return np.broadcast_to(stripes[:, None, :, None], (count, height, width, 3)).copy()


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    stripes = frames.mean(axis=(1, 3)).reshape(len(frames), STRIPES, -1).mean(axis=2)
    return ((stripes > 120) @ (1 << np.arange(STRIPES))).tolist()


def write(path: Path, count: int, stamps: NDArray[np.int64] | None = None, faststart: bool = False) -> None:
    """A video of numbered frames at 30 a second, or at the given time stamps (in 1/30 s)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        codec = "libvpx" if path.suffix == ".webm" else "libx264"
        stream = container.add_stream(codec, rate=30, options={"crf": "10", "g": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for number, pixels in enumerate(numbered(count)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if stamps is None else int(stamps[number])
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def episodes(folder: Path) -> list[dict[str, Any]]:
    found = []
    for shard in list_shards(folder):
        samples: dict[str, dict[str, Any]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                samples.setdefault(key, {})[extension] = (
                    json.loads(data) if extension == "json" else np.load(io.BytesIO(data))
                )
        found += samples.values()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".json" or "index" in p.name}


def by_source(folder: Path) -> dict[str, list[int]]:
    """The numbers of the frames that came from each video, over all its episodes."""
    found: dict[str, list[int]] = {}
    for episode in episodes(folder):
        found.setdefault(episode["json"]["source"], []).extend(numbers_of(episode["frames.npy"]))
    return found


@pytest.mark.parametrize("name", ["a.mp4", "sub.folder/b.webm", "C.MKV"])
def test_every_frame_is_ingested_once_in_order(tmp_path: Path, name: str) -> None:
    write(tmp_path / "in" / name, 50)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, clip_length=20)
    found = episodes(tmp_path / "out")
    assert [len(e["frames.npy"]) for e in found] == [20, 20, 10]
    assert by_source(tmp_path / "out") == {name: list(range(50))}
    assert [e["json"]["first_source_frame"] for e in found] == [0, 20, 40]
    assert found[0]["json"]["fps"] == pytest.approx(30, abs=0.1) and found[0]["json"]["truncated"]


def test_large_frames_make_shorter_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_episodes, "MAX_EPISODE_BYTES", 15 * 32 * 64 * 3)
    write(tmp_path / "in" / "a.mp4", 50)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert [len(e["frames.npy"]) for e in episodes(tmp_path / "out")] == [15, 15, 15, 5]
    assert by_source(tmp_path / "out") == {"a.mp4": list(range(50))}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_is_resampled_by_time(tmp_path: Path, suffix: str) -> None:
    stamps = np.cumsum([0, *([1, 1, 4, 2, 7] * 8)])[:40]
    write(tmp_path / "in" / f"a.{suffix}", 40, stamps)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, fps=10)
    numbers = by_source(tmp_path / "out")[f"a.{suffix}"]
    # Every tenth of a second (three stamps), what is on the screen then.
    expected = [int(np.searchsorted(stamps, 3 * k, side="right")) - 1 for k in range(int(stamps[-1]) // 3 + 1)]
    assert numbers[: len(expected)] == expected
    assert set(numbers[len(expected) :]) <= {39} and len(numbers) - len(expected) <= 1
    assert episodes(tmp_path / "out")[0]["json"]["fps"] == 10


@pytest.mark.parametrize(("fps", "expected"), [(15, [0, 2, 4, 6, 8]), (60, [n // 2 for n in range(20)])])
def test_constant_rate_is_resampled_exactly(fps: float, expected: list[int]) -> None:
    frame = np.zeros((1, 1, 3), np.uint8)
    source = (SourceFrame(round(n / 30, 3), n, frame) for n in range(10))  # as Matroska rounds
    assert [shown.frame_index for shown in resample_frames(source, fps, 30)] == expected


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_actions_follow_their_frames(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "in" / "a.mp4", 40)
    actions = np.arange(40) % 7
    if suffix == "npy":
        np.save(tmp_path / "in" / "a.actions.npy", actions)
    else:
        (tmp_path / "in" / "a.actions.csv").write_text("action\n" + "\n".join(map(str, actions)))
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, fps=30, clip_length=6)
    assert sum(len(episode["actions.npy"]) for episode in episodes(tmp_path / "out")) == 40
    for episode in episodes(tmp_path / "out"):
        assert episode["actions.npy"].dtype == np.int64
        np.testing.assert_array_equal(episode["actions.npy"], np.array(numbers_of(episode["frames.npy"])) % 7)


def test_labels_are_not_dropped_by_another_frame_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("labeled", "unlabeled"):
        write(tmp_path / "in" / f"{name}.mp4", 40)
    np.save(tmp_path / "in" / "labeled.actions.npy", np.arange(40) % 7)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, fps=12)
    assert list(by_source(tmp_path / "out")) == ["unlabeled.mp4"]
    assert "labeled.mp4  --fps 12 would drop or repeat frames of its 30 a second" in capsys.readouterr().out


def test_a_column_is_discrete_by_how_it_is_written(tmp_path: Path) -> None:
    table = tmp_path / "a.actions.csv"
    for text, dtype in (("0\n3\n", np.int64), ("0.00\n1.00\n", np.float32), ("throttle\n1\n0.5\n", np.float32)):
        table.write_text(text)
        actions = read_action_file(tmp_path / "a.mp4")
        assert actions is not None and actions.values.dtype == dtype and actions.meta == {}


def test_actions_are_parsed_or_rejected_with_a_message(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    table = tmp_path / "a.actions.csv"
    assert read_action_file(video) is None
    table.write_text("0.5,-1\n0,1\n")
    stated = read_action_file(video)
    assert stated is not None
    pairs = stated.values
    assert pairs.dtype == np.float32 and pairs.tolist() == [[0.5, -1], [0, 1]]
    wrong = {
        "1\n-2\n": "count from 0",
        "1,2\n3\n": "cannot be read",
        "1.5\nnan\n": "not finite",
        "0.5,3\n": "scale them",
    }
    for text, reason in wrong.items():
        table.write_text(text)
        with pytest.raises(ValueError, match=f"a.actions.csv: .*{reason}"):
            read_action_file(video)
    np.save(tmp_path / "a.actions.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a.actions.npy: cannot be read"):
        read_action_file(video)


def test_headers_and_json_state_composite_actions(tmp_path: Path) -> None:
    header = "choice3:color,keys:keys.left,keys:keys.right,keys:keys.up,keys:keys.down,pointer:mouse.x,pointer:mouse.y"
    rows = "2,1,0,1,0,0.5,-1\n" * 20
    write(tmp_path / "in" / "a.mp4", 20)
    (tmp_path / "in" / "a.actions.csv").write_text(f"{header}\n{rows}")
    parts = [part.to_json() for part in composite_space().parts]
    write(tmp_path / "in" / "b.mp4", 20)
    (tmp_path / "in" / "b.actions.csv").write_text(rows)
    (tmp_path / "in" / "b.actions.json").write_text(
        json.dumps({"action_parts": parts, "unknown_action_parts": ["mouse"]})
    )
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    (shard,) = (tmp_path / "out").glob("*.tar")
    entries = load_shard_index(str(shard)).episodes
    metas = [read_episode_metadata(str(shard), entry) for entry in entries]
    assert [(part["kind"], part["size"], part["name"]) for part in metas[0]["action_parts"]] == [
        ("choice", 3, "color"),
        ("keys", 4, "keys"),
        ("pointer", 2, "mouse"),
    ]
    assert metas[1]["action_parts"] == parts and [entry.known_parts[-1] for entry in entries] == [True, False]
    assert read_array(str(shard), entries[0], "actions").tolist() == [[2, 1, 0, 1, 0, 0.5, -1]] * 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys:a.x,speed\n1,1\n", "header cell 'speed': columns of composite actions are called"),
        ("keys:a.x,keys:b.x,keys:a.y\n1,1,1\n", "must have different names, got a, b, a"),
        ("keys:a.x,keys:a.y\n1,0.5\n", r"action column 'a.y' must be a whole number in 0..1, got 0.5"),
        ("pointer:a.x\n0.5\n", "a pointer has 2 columns"),
    ],
)
def test_invalid_composite_actions_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.actions.csv").write_text(text)
    with pytest.raises(ValueError, match=f"a.actions.csv: .*{said}"):
        read_action_file(tmp_path / "a.mp4")


def test_bad_videos_are_reported_and_good_ones_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    write(folder / "good.mp4", 30)
    write(folder / "short.mp4", 100, faststart=True)
    whole = (folder / "short.mp4").read_bytes()
    (folder / "short.mp4").write_bytes(whole[: len(whole) // 2])
    write(folder / "late.mp4", 30)
    (folder / "late.mp4").write_bytes((folder / "late.mp4").read_bytes()[:900])
    write(folder / "labeled.mp4", 30)
    np.save(folder / "labeled.actions.npy", np.zeros(29, np.int64))
    write(folder / "one.mp4", 1)
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mkv").touch()
    ingest_videos(folder, tmp_path / "out", workers=0)
    said = capsys.readouterr().out
    found = by_source(tmp_path / "out")
    assert sorted(found) == ["good.mp4", "short.mp4"]
    kept = len(found["short.mp4"])
    assert 2 <= kept < 100 and found["short.mp4"] == list(range(kept))
    assert f"{kept} frames kept: is damaged or truncated" in said
    for line in ("skipped (5)", "29 actions for 30 frames", "one.mp4      has fewer than 2 frames"):
        assert line in said
    for name in ("late.mp4", "text.mp4", "empty.mkv"):
        assert any(line.split()[:1] == [name] and "cannot be opened" in line for line in said.splitlines())


def test_nothing_readable_or_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder; give a folder of videos"):
        ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="has no videos"):
        ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    (tmp_path / "in" / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="none of its 1 videos could be read"):
        ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_any_workers_and_any_interruption_give_the_same_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(tmp_path / "in" / f"{number}.mp4", 10 + number)

    def run(out: str, workers: int) -> dict[str, bytes]:
        ingest_videos(tmp_path / "in", tmp_path / out, size=16, videos_per_shard=2, workers=workers)
        return contents(tmp_path / out)

    whole = run("a", 0)
    assert [n for n in whole if n.endswith(".tar")] == [f"shard-00000{i}.tar" for i in range(3)]
    assert run("b", 2) == whole

    original = shard_ingest.ingest_shard

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1].name == "shard-000001.tar":
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_ingest, "ingest_shard", interrupted)
        run("c", 0)
    assert [n for n in contents(tmp_path / "c") if n.endswith(".tar")] == ["shard-000000.tar"]
    assert run("c", 0) == whole
    (tmp_path / "c" / "shard-000002.tar").unlink()
    assert run("c", 0) == whole
    capsys.readouterr()
    assert run("c", 0) == whole
    assert "Nothing to do" in capsys.readouterr().out


def test_new_files_get_new_shards_and_changed_ones_are_rewritten(tmp_path: Path) -> None:
    write(tmp_path / "in" / "b.mp4", 10)
    (tmp_path / "in" / "c.mp4").write_text("not yet whole")
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    before = contents(tmp_path / "out")
    write(tmp_path / "in" / "a.mp4", 12)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    after = contents(tmp_path / "out")
    assert after["shard-000000.tar"] == before["shard-000000.tar"]
    assert sorted(n for n in after if n.endswith(".tar")) == ["shard-000000.tar", "shard-000001.tar"]
    write(tmp_path / "in" / "c.mp4", 14)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert {k: len(v) for k, v in by_source(tmp_path / "out").items()} == {"a.mp4": 12, "b.mp4": 10, "c.mp4": 14}
    assert "skipped" in json.loads((tmp_path / "out" / "ingest.json").read_text())["shards"][0]


def test_renamed_removed_and_skipped_videos_are_taken_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("a", 10), ("b", 12), ("c", 14)):
        write(tmp_path / "in" / f"{name}.mp4", count)
    whole = (tmp_path / "in" / "c.mp4").read_bytes()
    (tmp_path / "in" / "c.mp4").write_bytes(b"no video, of another size")
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    (tmp_path / "in" / "a.mp4").rename(tmp_path / "in" / "renamed.mp4")
    (tmp_path / "in" / "b.mp4").unlink()
    (tmp_path / "in" / "c.mp4").write_bytes(whole)
    capsys.readouterr()
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert {k: len(v) for k, v in by_source(tmp_path / "out").items()} == {"a.mp4": 10, "b.mp4": 12, "c.mp4": 14}
    assert "no longer there, kept in the shards (1):\n  b.mp4" in capsys.readouterr().out
    assert "renamed.mp4" in (tmp_path / "out" / "ingest.json").read_text()


def test_a_video_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write(tmp_path / "in" / f"{name}.mp4", 10)

    def refuse(source: Any, name: str) -> Any:
        if name == "b.mp4":
            raise ValueError("b.mp4: cannot be opened as a video (Permission denied)")
        return open_video(source, name)

    with monkeypatch.context() as patch:
        patch.setattr("vwm.data.video_episodes.open_video", refuse)
        ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert list(by_source(tmp_path / "out")) == ["a.mp4"]
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert sorted(by_source(tmp_path / "out")) == ["a.mp4", "b.mp4"]


def test_folders_behind_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.mp4", 10)
    write(tmp_path / "in" / "a.mp4", 10)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    assert sorted(by_source(tmp_path / "out")) == ["a.mp4", "link/b.mp4"]


@pytest.mark.parametrize("size", [(480, 640), (360, 640), (478, 800), (32, 64)])
@pytest.mark.parametrize("side", [64, 84, 128, 256])
def test_every_size_can_be_cropped(size: tuple[int, int], side: int) -> None:
    assert resize_and_crop(np.zeros((*size, 3), np.uint8), side, side).shape == (side, side, 3)


def test_one_odd_video_ends_itself_and_not_the_ingest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "npz", "codec"):
        write(tmp_path / "in" / f"{name}.mp4", 10)
    with (tmp_path / "in" / "npz.actions.npy").open("wb") as file:
        np.savez(file, actions=np.zeros(10, int))
    data = (tmp_path / "in" / "codec.mp4").read_bytes()
    (tmp_path / "in" / "codec.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    printed = capsys.readouterr().out
    assert list(by_source(tmp_path / "out")) == ["good.mp4"]
    assert "npz.mp4    npz.actions.npy: is an archive of several arrays" in printed
    assert "codec.mp4  " in printed and "skipped (2)" in printed


def test_a_jump_in_the_time_stamps_is_a_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = np.arange(40) + np.where(np.arange(40) < 16, 0, 30 * 3 * 3600)
    write(tmp_path / "in" / "a.mkv", 40, stamps)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, fps=30)
    assert [numbers_of(episode["frames.npy"]) for episode in episodes(tmp_path / "out")] == [
        list(range(16)), list(range(16, 40)),
    ]  # fmt: skip
    assert "a.mkv  cut where its time stamps jump, at frame 16" in capsys.readouterr().out
    with pytest.raises(ValueError, match="fps must be at most 1000, got 1e"):
        ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, fps=1e9)


def test_pixels_that_are_not_square_are_resized_to_their_shape() -> None:
    """A 256x128 picture stored in 128x128 pixels: its middle square is white, and is what a crop to a square shows."""
    frame = np.zeros((128, 128, 3), np.uint8)
    frame[:, 32:96] = 255
    assert (resize_and_crop(frame, 64, 64, pixel_aspect=2.0) == 255).all()


def test_rejects_other_settings(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.mp4", 10)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match=r"fps was None and is now 5\.0"):
        ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, fps=5.0)
    for settings, message in (
        ({"size": 8, "height": 8}, "not both"),
        ({"height": 8}, "go together"),
        ({"fps": 0.0}, "fps must be above 0"),
        ({"clip_length": 1}, "clip_length must be 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ingest_videos(tmp_path / "in", tmp_path / "new", workers=0, **settings)  # type: ignore[arg-type]


def test_a_hanging_decoder_loses_only_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.mp4", 10)
    write(tmp_path / "in" / "b.mp4", 10)
    original = video_episodes.iterate_frames

    def hanging(container: Any, name: str) -> Iterator[Any]:
        for number, item in enumerate(original(container, name)):
            if name == "a.mp4" and number == 4:
                time.sleep(3)
            yield item

    monkeypatch.setattr(video_episodes, "iterate_frames", hanging)
    ingest_videos(tmp_path / "in", tmp_path / "out", workers=0, timeout=0.5)
    assert {k: len(v) for k, v in by_source(tmp_path / "out").items()} == {"a.mp4": 4, "b.mp4": 10}
    assert "4 frames kept: the decoder gave no frame for 0.5 s" in capsys.readouterr().out


def test_frames_are_resized_to_cover_and_center_cropped() -> None:
    frame = np.zeros((4, 8, 3), np.uint8)
    frame[:, 2:6] = 200
    np.testing.assert_array_equal(resize_and_crop(frame, 2, 2), np.full((2, 2, 3), 200))
    np.testing.assert_array_equal(resize_and_crop(frame, 2, 4)[0, :, 0], [0, 200, 200, 0])
    assert resize_and_crop(frame, None, None) is frame
    assert resize_and_crop(frame, 9, 5).shape == (9, 5, 3)
