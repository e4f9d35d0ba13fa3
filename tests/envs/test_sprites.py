"""Sprite worlds: the laws hold in possible clips, and no frame by itself tells an impossible one."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vwm.data.shard_index import list_shards
from vwm.envs.sprite_worlds import (
    PHYSICAL_PROPERTIES,
    SPEED_CLASSES,
    SPRITE_WORLDS,
    make_possible_clip,
    make_quadruple,
)
from vwm.envs.sprites import (
    MOTION_DIRECTIONS,
    SPRITE_COLORS,
    SPRITE_FRAME_SIZE,
    SPRITE_SHAPES,
    Sprite,
    SpriteClip,
    SpriteScene,
    sprite_coverage,
    transform_clip,
)

SEEDS = range(12)
LENGTHS = (16, 24, 32)


def script() -> Any:
    path = Path(__file__).parents[2] / "datasets" / "sprites" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_sprites", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def singles(*clips: SpriteClip) -> Counter[bytes]:
    return Counter(frame.tobytes() for clip in clips for frame in clip.frames)


def steps(*clips: SpriteClip) -> Counter[bytes]:
    """Frames with their neighbors."""
    return Counter(c.frames[t : t + 2].tobytes() for c in clips for t in range(len(c.frames) - 1))


def shown(clip: SpriteClip, empty: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which frames differ from the empty stage, bool [t]."""
    different: NDArray[np.bool_] = (clip.frames != empty).any(axis=(1, 2, 3))
    return different


# --------------------------------------------------------------------------------------------------- quadruples


@pytest.mark.parametrize("law", PHYSICAL_PROPERTIES)
@pytest.mark.parametrize("frames", LENGTHS)
def test_impossible_clips_are_made_of_the_frames_and_steps_of_possible_ones(law: str, frames: int) -> None:
    for seed in SEEDS:
        four = make_quadruple(law, np.random.default_rng(seed), frames)
        assert singles(*four.possible) == singles(*four.impossible)
        assert steps(*four.possible) == steps(*four.impossible)
        for clip in four.possible + four.impossible:
            assert (
                clip.frames.shape == (frames, SPRITE_FRAME_SIZE, SPRITE_FRAME_SIZE, 3) and clip.frames.dtype == np.uint8
            )


@pytest.mark.parametrize("law", PHYSICAL_PROPERTIES)
def test_pairs_are_equal_before_the_violation_and_differ_at_it(law: str) -> None:
    events = set()
    for seed in SEEDS:
        four = make_quadruple(law, np.random.default_rng(seed), 24)
        events.add(four.event)
        assert 4 <= four.violation <= 18
        for possible, impossible in zip(four.possible, four.impossible, strict=True):
            np.testing.assert_array_equal(possible.frames[: four.violation], impossible.frames[: four.violation])
            assert (possible.frames[four.violation] != impossible.frames[four.violation]).any()
        one, other = four.possible
        assert (one.frames[0] != other.frames[0]).any()
    assert len(events) == (2 if law == "continuity" else 1)


def test_each_event_is_what_it_is_called() -> None:
    for seed in SEEDS:
        a, b = (q := make_quadruple("permanence", np.random.default_rng(seed), 24)).possible
        empty = b.frames[0]
        assert b.labels["shape"] == "none" and (b.frames == empty).all() and not b.state.any()
        vanishes, appears = (shown(c, empty) for c in q.impossible)
        assert vanishes[:4].all() and not vanishes[q.violation :].any()
        assert appears[-4:].all() and not appears[: q.violation].any()
        assert q.impossible[1].labels["shape"] == a.labels["shape"]

        q = make_quadruple("continuity", np.random.default_rng(seed), 24)
        if q.event == "does not cross the gap":
            empty = q.possible[1].frames[0]
            skips, lonely = (shown(c, empty) for c in q.impossible)
            assert skips[0] and skips[-1] and not lonely[0] and not lonely[-1]
            seen = shown(q.possible[0], empty)
            np.testing.assert_array_equal(seen, skips | lonely)
            assert not (skips & lonely).any() and lonely.sum() >= 3
        else:
            ways = [np.abs(np.diff(c.state[:, 1:3], axis=0)).max() for c in (*q.possible, *q.impossible)]
            assert max(ways[:2]) < 3.5 and min(ways[2:]) > 15

        q = make_quadruple("solidity", np.random.default_rng(seed), 24)
        for possible, impossible in zip(q.possible, q.impossible, strict=True):
            np.testing.assert_allclose(possible.state[0, 1:3], possible.state[-1, 1:3], atol=3)  # back again
            across = int(np.abs(possible.state[0, 3:]).argmax()) + 1
            sides = np.sign(impossible.state[[0, -1], across] - SPRITE_FRAME_SIZE / 2)
            assert sides[0] == -sides[1]


# --------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("world", SPRITE_WORLDS)
@pytest.mark.parametrize("frames", LENGTHS)
def test_in_possible_clips_nothing_jumps_and_speed_is_kept(world: str, frames: int) -> None:
    for seed in range(40):
        clip = make_possible_clip(world, np.random.default_rng([seed, frames]), frames)
        present, place, velocity = clip.state[:, 0], clip.state[:, 1:3], clip.state[:, 3:]
        assert present.min() == present.max()  # nothing begins or ends
        if not present[0]:
            continue
        speed = np.hypot(*velocity.T)
        np.testing.assert_allclose(speed, speed[0], rtol=1e-5)
        way = np.diff(place, axis=0)
        turns = (velocity[1:] != velocity[:-1]).any(axis=1)
        np.testing.assert_allclose(way[~turns], velocity[1:][~turns], atol=1e-4)
        assert turns.sum() <= (world == "solidity")
        assert (np.hypot(*way.T) <= speed[0] + 1e-4).all()
        assert (place > 2).all() and (place < SPRITE_FRAME_SIZE - 2).all()


def test_a_sprite_is_drawn_where_its_state_says() -> None:
    for seed in range(30):
        clip = make_possible_clip("moving", np.random.default_rng(seed), 16)
        # the first and the last frame show the ground where the sprite is in the other one
        changed = (clip.frames[0] != clip.frames[-1]).any(axis=-1)
        for t in (0, -1):
            x, y = clip.state[t, 1:3]
            assert changed[int(y), int(x)]
            r, g, b = clip.frames[t, int(y), int(x)].astype(int)
            if clip.labels["shape"] != "triangle":
                assert (r, g, b) == SPRITE_COLORS[clip.labels["color"]]


@pytest.mark.parametrize("shape", SPRITE_SHAPES)
def test_a_sprite_keeps_its_area_wherever_it_is(shape: str) -> None:
    areas = {"circle": np.pi, "square": 4, "triangle": 2, "diamond": 2, "cross": 4 * 0.64}
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(10, 50, (20, 2)):
        _, share = sprite_coverage(Sprite(shape, "red", 5.0), x, y)
        assert share.sum() == pytest.approx(areas[shape] * 25, rel=0.06)
        assert 0 <= share.min() and share.max() == 1
    stage = SpriteScene(np.zeros((SPRITE_FRAME_SIZE, SPRITE_FRAME_SIZE, 3), np.float32))
    frames = stage.draw(Sprite(shape, "red", 5.0), np.array([[20.5, 30.5], [20.5 + 7, 30.5]]))
    np.testing.assert_array_equal(np.roll(frames[0], 7, axis=1), frames[1])
    np.testing.assert_array_equal(stage.draw(None, np.zeros((2, 2))), 0)


# ------------------------------------------------------------------------------------------------------- labels


def test_labels_say_what_is_seen_and_all_of_them_come() -> None:
    clips = [make_possible_clip("moving", np.random.default_rng(seed), 16) for seed in range(200)]
    for key, classes in (
        ("shape", SPRITE_SHAPES),
        ("color", SPRITE_COLORS),
        ("direction", MOTION_DIRECTIONS),
        ("speed_class", SPEED_CLASSES),
    ):
        counts = Counter(c.labels[key] for c in clips)
        assert set(counts) == set(classes) and min(counts.values()) > 8
    for clip in clips:
        vx, vy = clip.state[0, 3:]
        assert clip.labels["speed"] == pytest.approx(SPEED_CLASSES[clip.labels["speed_class"]] / 15, abs=1e-4)
        horizontal = {1: "right", 0: "", -1: "left"}[int(np.sign(np.round(vx, 3)))]
        vertical = {1: "down", 0: "", -1: "up"}[int(np.sign(np.round(vy, 3)))]
        assert clip.labels["direction"] == "-".join(filter(None, (vertical, horizontal)))


def test_the_eight_turns_are_different_and_keep_state_and_picture_together() -> None:
    clip = make_possible_clip("moving", np.random.default_rng(5), 16)
    pictures = set()
    for turn in range(8):
        laid = transform_clip(clip, turn)
        pictures.add(laid.frames.tobytes())
        x, y = laid.state[3, 1:3]
        x0, y0 = clip.state[3, 1:3]
        np.testing.assert_array_equal(laid.frames[3, int(y), int(x)], clip.frames[3, int(y0), int(x0)])
        np.testing.assert_allclose(np.diff(laid.state[:, 1:3], axis=0), laid.state[1:, 3:], atol=1e-4)
    assert len(pictures) == 8


# ------------------------------------------------------------------------------------------------------- script


def read(folder: Path) -> list[dict[str, Any]]:
    found = []
    for shard in list_shards(folder):
        with tarfile.open(shard) as tar:
            found += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return found


def test_the_script_writes_pairs_that_can_be_told_by_their_json(tmp_path: Path) -> None:
    generate = script()
    for name in ("a", "b"):
        generate.main([str(tmp_path / name), "--pairs", "--clips", "24", "--frames", "16"])
    shards = [Path(p).read_bytes() for n in ("a", "b") for p in list_shards(tmp_path / n)]
    assert len(shards) == 2 and shards[0] == shards[1]
    metas = read(tmp_path / "a")
    assert len(metas) == 24 and Counter(m["property"] for m in metas) == dict.fromkeys(PHYSICAL_PROPERTIES, 8)
    for pair in range(12):
        one, other = (m for m in metas if m["pair"] == pair)
        assert {one["possible"], other["possible"]} == {True, False}
        assert one["violation_frame"] == other["violation_frame"] < 16
        assert one["quadruple"] == other["quadruple"] == pair // 2
        assert one["source"] == f"sprites:{one['property']}" and one["frames"] == 16
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path / "a"), "--clips", "4"])
    assert [Path(p).read_bytes() for p in list_shards(tmp_path / "a")] == shards[:1]


def test_training_clips_are_of_all_worlds_and_other_seeds_are_other_clips(tmp_path: Path) -> None:
    generate = script()
    for seed in "01":
        generate.main([str(tmp_path / seed), "--clips", "8", "--frames", "16", "--seed", seed])
    metas = read(tmp_path / "0")
    assert Counter(m["source"] for m in metas) == {f"sprites:{w}": 2 for w in SPRITE_WORLDS}
    assert not any("possible" in m for m in metas)
    one, other = (Path(list_shards(tmp_path / seed)[0]).read_bytes() for seed in "01")
    assert one != other


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pairs", "--clips", "6"], "multiple of 4, got 6"),
        (["--frames", "8"], "16 to 32, got 8"),
        (["--clips", "0"], "1 or more"),
        (["--pairs", "--worlds", "moving"], "'moving' has none"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        script().main([str(tmp_path / "out"), *argv])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_unknown_worlds_and_lengths_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no world 'gravity' here, only moving, permanence"):
        make_possible_clip("gravity", rng, 24)
    with pytest.raises(ValueError, match="no world 'moving' here, only permanence"):
        make_quadruple("moving", rng, 24)
    with pytest.raises(ValueError, match="16 to 32 frames, got 40"):
        make_quadruple("solidity", rng, 40)
