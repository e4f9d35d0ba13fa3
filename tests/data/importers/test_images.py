"""Folders of frames and animated files, written by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawer_episodes import LENGTHS, check_frames, grey_frames, states
from PIL import Image
from shard_contents import read_shards

from vwm.data.importers.images import ImagesSource
from vwm.data.importing import import_dataset


def pictures(number: int) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in grey_frames(number)]


def write_folder(folder: Path, number: int, extension: str = "png") -> None:
    folder.mkdir(parents=True)
    for t, picture in enumerate(pictures(number)):
        picture.save(folder / f"frame{t + 8}.{extension}")  # 9 comes before 10


def run(source: Path, out: Path, **others: int) -> None:
    import_dataset("images", source, out, workers=0, **others)


def test_folders_of_frames_with_actions_beside_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "in" / "episode2", 0)
    write_folder(tmp_path / "in" / "deep" / "episode10", 1, "jpg")
    np.save(tmp_path / "in" / "episode2.actions.npy", np.arange(LENGTHS[0]))
    rows = [f"{t % 2},{t / 10}" for t in range(LENGTHS[1])]
    (tmp_path / "in" / "deep" / "episode10.actions.csv").write_text(
        "\n".join(["keys:pad.left,axes:wheel.steer", *rows])
    )
    import_dataset("images", tmp_path / "in", tmp_path / "out", fps=12, workers=0)
    (second, meta_second), (first, meta_first) = read_shards(tmp_path / "out")
    assert [meta_second["source"], meta_first["source"]] == ["deep/episode10", "episode2"]
    check_frames(first["frames"], 0)
    check_frames(second["frames"], 1, 1)
    np.testing.assert_array_equal(first["actions"], np.arange(LENGTHS[0]))
    np.testing.assert_allclose(second["actions"][:, 1], states(1)[:, 1] / 10)
    np.testing.assert_array_equal(second["actions"][:, 0], [0, 1, 0, 1])
    assert [part["kind"] for part in meta_second["action_parts"]] == ["keys", "axes"]
    assert meta_first["fps"] == meta_second["fps"] == 12


@pytest.mark.parametrize("extension", ["gif", "webp", "png"])
def test_animations_have_the_time_of_their_frames(tmp_path: Path, extension: str) -> None:
    first, *others = pictures(0)
    first.save(tmp_path / f"walk.{extension}", save_all=True, append_images=others, duration=40, lossless=True)
    np.save(tmp_path / "walk.actions.npy", np.arange(LENGTHS[0]))
    run(tmp_path, tmp_path / "out")
    ((arrays, meta),) = read_shards(tmp_path / "out")
    check_frames(arrays["frames"], 0, 1)
    np.testing.assert_array_equal(arrays["actions"], np.arange(LENGTHS[0]))
    assert meta["fps"] == 25 and meta["source"] == f"walk.{extension}"


def test_actions_in_the_folder_of_the_frames_of_which_the_last_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write_folder(tmp_path / "in" / f"walk{number}", number)
        np.save(tmp_path / "in" / f"walk{number}" / "actions.npy", np.arange(LENGTHS[number] - 1))
    np.save(tmp_path / "in" / "walk1.actions.npy", np.arange(LENGTHS[1]))
    run(tmp_path / "in", tmp_path / "out")
    ((arrays, _),) = read_shards(tmp_path / "out")
    np.testing.assert_array_equal(arrays["actions"], np.arange(LENGTHS[0] - 1))
    check_frames(np.concatenate((arrays["frames"], arrays["frames"][-1:] + 10)), 0)
    assert "walk1: has actions in the folder and beside it (walk1.actions): keep those of one place" in (
        capsys.readouterr().out
    )


def test_thirty_frames_a_second_in_a_clock_of_hundredths(tmp_path: Path) -> None:
    levels = [Image.new("L", (16, 16), 20 * t) for t in range(6)]
    for name, times in (("all", [30, 40, 30, 30, 40, 30]), ("joined", [30, 40, 30, 130, 40, 30])):
        levels[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=levels[1:], duration=times)
    np.save(tmp_path / "each.actions.npy", np.arange(6))
    levels[0].save(tmp_path / "each.gif", save_all=True, append_images=levels[1:], duration=[30, 40, 30, 130, 40, 30])
    run(tmp_path, tmp_path / "out")
    found = {meta["source"]: (arrays, meta) for arrays, meta in read_shards(tmp_path / "out")}
    shown = {name: arrays["frames"][:, 0, 0, 0].tolist() for name, (arrays, _) in found.items()}
    assert shown["all.gif"] == [0, 20, 40, 60, 80, 100] and found["all.gif"][1]["fps"] == 30
    assert shown["joined.gif"] == [0, 20, 40, 60, 60, 60, 60, 80, 100] and found["joined.gif"][1]["fps"] == 30
    assert shown["each.gif"] == shown["all.gif"]  # an action for each stored frame
    np.testing.assert_array_equal(found["each.gif"][0]["actions"], np.arange(6))


def test_a_folder_is_listed_once_for_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        write_folder(tmp_path / "in" / f"walk{number}", number)
    opened = []
    initialize = ImagesSource.__init__
    monkeypatch.setattr(ImagesSource, "__init__", lambda self, path: opened.append(path) or initialize(self, path))
    run(tmp_path / "in", tmp_path / "out", episodes_per_shard=1)
    assert len(opened) == 1 and len(list((tmp_path / "out").glob("*.tar"))) == 2
    write_folder(tmp_path / "in" / "walk2", 0)
    run(tmp_path / "in", tmp_path / "out", episodes_per_shard=1)  # and seen again by the next import
    assert len(opened) == 2 and len(list((tmp_path / "out").glob("*.tar"))) == 3


def test_equal_frames_that_a_writer_joined_are_several_again(tmp_path: Path) -> None:
    first, *others = pictures(1)
    first.save(tmp_path / "walk.gif", save_all=True, append_images=[others[0]] * 3 + others[1:], duration=100)
    with Image.open(tmp_path / "walk.gif") as stored:
        assert stored.n_frames == 4  # type: ignore[attr-defined]
    run(tmp_path / "walk.gif", tmp_path / "out")
    ((arrays, meta),) = read_shards(tmp_path / "out")
    np.testing.assert_allclose(arrays["frames"].mean((1, 2, 3)), [60, 70, 70, 70, 80, 90], atol=1)
    assert meta["fps"] == 10


def test_pictures_are_black_where_they_are_transparent_and_upright(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    clear = Image.new("RGBA", (10, 8), (255, 0, 0, 255))
    clear.paste((0, 255, 0, 0), (0, 0, 5, 8))  # a green that no viewer shows
    clear.save(folder / "0.png")
    turned = Image.new("RGB", (8, 10), "white")
    turned.paste("blue", (0, 0, 8, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned.save(folder / "1.png", exif=exif)
    run(folder, tmp_path / "out")
    ((arrays, _),) = read_shards(tmp_path / "out")
    first, second = arrays["frames"]
    assert (first[:, :5] == 0).all() and (first[:, 5:] == [255, 0, 0]).all()
    assert (second[:, 5:] == [0, 0, 255]).all() and (second[:, :5] == 255).all()


def test_broken_episodes_are_named_and_the_others_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    for name in ("good", "cut", "sizes", "depth", "actions", "still", "twice", "wide"):
        write_folder(source / name, 0)
    content = (source / "cut" / "frame9.png").read_bytes()
    (source / "cut" / "frame9.png").write_bytes(content[:60])
    Image.new("RGB", (24, 16)).save(source / "sizes" / "frame10.png")
    Image.fromarray(np.full((16, 16), 3_000, np.uint16)).save(source / "depth" / "frame8.png")
    Image.new("RGB", (16, 16)).save(source / "twice" / "frame8.jpg")
    Image.new("1", (70_000, 1)).save(source / "wide" / "frame8.png")
    np.save(source / "actions.actions.npy", np.arange(4))
    for file in list((source / "still").iterdir())[1:]:
        file.unlink()
    (source / "text.gif").write_text("no animation")
    run(source, tmp_path / "out")
    text = capsys.readouterr().out
    assert "skipped (8):" in text
    assert "  twice: has pictures of several kinds (jpg, png): keep those of one\n" in text
    assert "  wide: frame8.png: cannot be decoded as a picture (is 70000x1, more than 8192 pixels on a side)\n" in text
    assert "  actions: has 4 actions for 6 frames\n" in text
    assert "  cut: frame9.png: cannot be decoded as a picture (" in text
    assert "  depth: frame8.png: cannot be decoded as a picture (has levels of more than 8 bits (mode I;16)" in text
    assert "  sizes: frame 2 is 24x16, the first one 16x16: give --size to resize them" in text
    assert "  still: has fewer than 2 frames" in text
    assert "  text.gif: cannot be decoded as an animation (" in text
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["good"]
    with pytest.raises(ValueError, match="has no folder of pictures and no animated"):
        run(tmp_path / "out", tmp_path / "other")
