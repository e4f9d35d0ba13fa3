"""Sprite worlds: possible clips obey physics, and single frames do not reveal impossible clips."""

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


def load_script() -> Any:
    path = Path(__file__).parents[2] / "datasets" / "sprites" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_sprites", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_frames(*clips: SpriteClip) -> Counter[bytes]:
    return Counter(frame.tobytes() for clip in clips for frame in clip.frames)


def count_frame_pairs(*clips: SpriteClip) -> Counter[bytes]:
    """Count pairs of successive frames."""
    return Counter(c.frames[t : t + 2].tobytes() for c in clips for t in range(len(c.frames) - 1))


def sprite_visible(clip: SpriteClip, empty: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each frame differs from the empty background, bool [t]."""
    different: NDArray[np.bool_] = (clip.frames != empty).any(axis=(1, 2, 3))
    return different


# --------------------------------------------------------------------------------------------------- quadruples


@pytest.mark.parametrize("property_name", PHYSICAL_PROPERTIES)
@pytest.mark.parametrize("frames", LENGTHS)
def test_impossible_clips_contain_the_same_frames_and_frame_pairs_as_possible_ones(
    property_name: str, frames: int
) -> None:
    for seed in SEEDS:
        quadruple = make_quadruple(property_name, np.random.default_rng(seed), frames)
        assert count_frames(*quadruple.possible) == count_frames(*quadruple.impossible)
        assert count_frame_pairs(*quadruple.possible) == count_frame_pairs(*quadruple.impossible)
        for clip in quadruple.possible + quadruple.impossible:
            assert (
                clip.frames.shape == (frames, SPRITE_FRAME_SIZE, SPRITE_FRAME_SIZE, 3) and clip.frames.dtype == np.uint8
            )


@pytest.mark.parametrize("property_name", PHYSICAL_PROPERTIES)
def test_pairs_are_equal_before_the_violation_and_differ_at_its_frame(property_name: str) -> None:
    events = set()
    for seed in SEEDS:
        quadruple = make_quadruple(property_name, np.random.default_rng(seed), 24)
        events.add(quadruple.event)
        assert 4 <= quadruple.violation <= 18
        for possible, impossible in zip(quadruple.possible, quadruple.impossible, strict=True):
            np.testing.assert_array_equal(
                possible.frames[: quadruple.violation], impossible.frames[: quadruple.violation]
            )
            assert (possible.frames[quadruple.violation] != impossible.frames[quadruple.violation]).any()
        first, second = quadruple.possible
        assert (first.frames[0] != second.frames[0]).any()
    assert len(events) == (2 if property_name == "continuity" else 1)


def test_each_event_violates_its_named_property() -> None:
    for seed in SEEDS:
        a, b = (quadruple := make_quadruple("permanence", np.random.default_rng(seed), 24)).possible
        empty = b.frames[0]
        assert b.labels["shape"] == "none" and (b.frames == empty).all() and not b.state.any()
        vanishes, appears = (sprite_visible(c, empty) for c in quadruple.impossible)
        assert vanishes[:4].all() and not vanishes[quadruple.violation :].any()
        assert appears[-4:].all() and not appears[: quadruple.violation].any()
        assert quadruple.impossible[1].labels["shape"] == a.labels["shape"]

        quadruple = make_quadruple("continuity", np.random.default_rng(seed), 24)
        if quadruple.event == "does not cross the gap":
            empty = quadruple.possible[1].frames[0]
            gap, only_crossing = (sprite_visible(c, empty) for c in quadruple.impossible)
            assert gap[0] and gap[-1] and not only_crossing[0] and not only_crossing[-1]
            visible = sprite_visible(quadruple.possible[0], empty)
            np.testing.assert_array_equal(visible, gap | only_crossing)
            assert not (gap & only_crossing).any() and only_crossing.sum() >= 3
        else:
            max_steps = [
                np.abs(np.diff(c.state[:, 1:3], axis=0)).max() for c in (*quadruple.possible, *quadruple.impossible)
            ]
            assert max(max_steps[:2]) < 3.5 and min(max_steps[2:]) > 15

        quadruple = make_quadruple("solidity", np.random.default_rng(seed), 24)
        for possible, impossible in zip(quadruple.possible, quadruple.impossible, strict=True):
            # The sprite returns to its start.
            np.testing.assert_allclose(possible.state[0, 1:3], possible.state[-1, 1:3], atol=3)
            crossing_axis = int(np.abs(possible.state[0, 3:]).argmax()) + 1
            sides = np.sign(impossible.state[[0, -1], crossing_axis] - SPRITE_FRAME_SIZE / 2)
            assert sides[0] == -sides[1]


# ----------------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize("world", SPRITE_WORLDS)
@pytest.mark.parametrize("frames", LENGTHS)
def test_in_possible_clips_motion_is_continuous_and_speed_is_constant(world: str, frames: int) -> None:
    for seed in range(40):
        clip = make_possible_clip(world, np.random.default_rng([seed, frames]), frames)
        present, position, velocity = clip.state[:, 0], clip.state[:, 1:3], clip.state[:, 3:]
        assert present.min() == present.max()  # the sprite neither appears nor disappears
        if not present[0]:
            continue
        speed = np.hypot(*velocity.T)
        np.testing.assert_allclose(speed, speed[0], rtol=1e-5)
        displacement = np.diff(position, axis=0)
        bounces = (velocity[1:] != velocity[:-1]).any(axis=1)
        np.testing.assert_allclose(displacement[~bounces], velocity[1:][~bounces], atol=1e-4)
        assert bounces.sum() <= (world == "solidity")
        assert (np.hypot(*displacement.T) <= speed[0] + 1e-4).all()
        assert (position > 2).all() and (position < SPRITE_FRAME_SIZE - 2).all()


def test_a_sprite_is_drawn_at_the_position_in_its_state() -> None:
    for seed in range(30):
        clip = make_possible_clip("moving", np.random.default_rng(seed), 16)
        # the first and the last frame show the background where the sprite is in the other frame
        changed = (clip.frames[0] != clip.frames[-1]).any(axis=-1)
        for t in (0, -1):
            x, y = clip.state[t, 1:3]
            assert changed[int(y), int(x)]
            r, g, b = clip.frames[t, int(y), int(x)].astype(int)
            if clip.labels["shape"] != "triangle":
                assert (r, g, b) == SPRITE_COLORS[clip.labels["color"]]


@pytest.mark.parametrize("shape", SPRITE_SHAPES)
def test_the_area_of_a_sprite_does_not_depend_on_its_position(shape: str) -> None:
    areas = {"circle": np.pi, "square": 4, "triangle": 2, "diamond": 2, "cross": 4 * 0.64}
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(10, 50, (20, 2)):
        _, coverage = sprite_coverage(Sprite(shape, "red", 5.0), x, y)
        assert coverage.sum() == pytest.approx(areas[shape] * 25, rel=0.06)
        assert 0 <= coverage.min() and coverage.max() == 1
    scene = SpriteScene(np.zeros((SPRITE_FRAME_SIZE, SPRITE_FRAME_SIZE, 3), np.float32))
    frames = scene.draw(Sprite(shape, "red", 5.0), np.array([[20.5, 30.5], [20.5 + 7, 30.5]]))
    np.testing.assert_array_equal(np.roll(frames[0], 7, axis=1), frames[1])
    np.testing.assert_array_equal(scene.draw(None, np.zeros((2, 2))), 0)


# ------------------------------------------------------------------------------------------------------- labels


def test_labels_match_the_clip_and_all_classes_occur() -> None:
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


def test_the_eight_symmetries_differ_and_transform_state_and_frames_alike() -> None:
    clip = make_possible_clip("moving", np.random.default_rng(5), 16)
    distinct = set()
    for symmetry in range(8):
        transformed = transform_clip(clip, symmetry)
        distinct.add(transformed.frames.tobytes())
        x, y = transformed.state[3, 1:3]
        x0, y0 = clip.state[3, 1:3]
        np.testing.assert_array_equal(transformed.frames[3, int(y), int(x)], clip.frames[3, int(y0), int(x0)])
        np.testing.assert_allclose(np.diff(transformed.state[:, 1:3], axis=0), transformed.state[1:, 3:], atol=1e-4)
    assert len(distinct) == 8


# ------------------------------------------------------------------------------------------------------- script


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    metadata = []
    for shard in list_shards(folder):
        with tarfile.open(shard) as tar:
            metadata += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return metadata


def test_the_script_writes_pairs_identified_by_their_json(tmp_path: Path) -> None:
    generate = load_script()
    for name in ("a", "b"):
        generate.main([str(tmp_path / name), "--pairs", "--clips", "24", "--frames", "16"])
    shards = [Path(p).read_bytes() for n in ("a", "b") for p in list_shards(tmp_path / n)]
    assert len(shards) == 2 and shards[0] == shards[1]
    metas = read_metadata(tmp_path / "a")
    assert len(metas) == 24 and Counter(m["property"] for m in metas) == dict.fromkeys(PHYSICAL_PROPERTIES, 8)
    for pair in range(12):
        first, second = (m for m in metas if m["pair"] == pair)
        assert {first["possible"], second["possible"]} == {True, False}
        assert first["violation_frame"] == second["violation_frame"] < 16
        assert first["quadruple"] == second["quadruple"] == pair // 2
        assert first["source"] == f"sprites:{first['property']}" and first["frames"] == 16
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path / "a"), "--clips", "4"])
    assert [Path(p).read_bytes() for p in list_shards(tmp_path / "a")] == shards[:1]


def test_training_clips_cover_all_worlds_and_depend_on_the_seed(tmp_path: Path) -> None:
    generate = load_script()
    for seed in "01":
        generate.main([str(tmp_path / seed), "--clips", "8", "--frames", "16", "--seed", seed])
    metas = read_metadata(tmp_path / "0")
    assert Counter(m["source"] for m in metas) == {f"sprites:{w}": 2 for w in SPRITE_WORLDS}
    assert not any("possible" in m for m in metas)
    first, second = (Path(list_shards(tmp_path / seed)[0]).read_bytes() for seed in "01")
    assert first != second


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pairs", "--clips", "6"], "multiple of 4, got 6"),
        (["--frames", "8"], "16 to 32, got 8"),
        (["--clips", "0"], "1 or more"),
        (["--pairs", "--worlds", "moving"], "'moving' has none"),
    ],
)
def test_rejects_invalid_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        load_script().main([str(tmp_path / "out"), *argv])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_rejects_unknown_worlds_and_lengths() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no world 'gravity' here, only moving, permanence"):
        make_possible_clip("gravity", rng, 24)
    with pytest.raises(ValueError, match="no world 'moving' here, only permanence"):
        make_quadruple("moving", rng, 24)
    with pytest.raises(ValueError, match="16 to 32 frames, got 40"):
        make_quadruple("solidity", rng, 40)
