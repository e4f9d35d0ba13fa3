"""A curated ingest: what filters remove and keep, whatever is killed on the way, and the report of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vwm.data import shard_ingest
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_episode_metadata
from vwm.tokenizers.corpus import ingest_videos

sys.path.append(str(Path(__file__).parents[2] / "tools" / "corpus"))
from synthetic import make_corpus, make_frames, write_video

REMOVE = ["black", "frozen", "duplicates"]
EXPECTED = {
    ("moving", "kept"): 9, ("two shots", "kept"): 2, ("three shots", "kept"): 3, ("text", "kept"): 1,
    ("frozen", "frozen"): 1, ("black", "black"): 1, ("smaller copy", "duplicates"): 1, ("worse copy", "duplicates"): 1,
    ("same file", "duplicates"): 1, ("broken header", "skipped"): 1, ("cut off", "skipped"): 1, ("empty", "skipped"): 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 videos, one of each kind and nine ordinary ones."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, 20)
    return folder


def ingest(source: Path, out: Path, **options: Any) -> None:
    settings = {"size": 32, "shots": "detect", "remove": REMOVE, "videos_per_shard": 4, "workers": 0}
    ingest_videos(source, out, **settings | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of an ingest that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ingest(corpus, out)
    return out


def outcomes(corpus: Path, out: Path) -> Counter[tuple[str, str]]:
    """How many clips of each kind of video had each outcome."""
    kinds = json.loads((corpus / "kinds.json").read_text())
    found: Counter[tuple[str, str]] = Counter()
    for shard in json.loads((out / "ingest.json").read_text())["shards"]:
        found.update((kinds[path], "skipped") for path in shard["skipped"])
        table = json.loads((out / "clips" / shard["name"].replace(".tar", ".json")).read_text())
        for clip in table["clips"]:
            outcome = clip["removed_by"] or ("duplicates" if clip["key"] in (shard["duplicates"] or {}) else "kept")
            found[kinds[clip["source"]], outcome] += 1
    return found


def test_every_kind_of_video_has_the_outcome_that_a_person_would_give_it(corpus: Path, whole: Path) -> None:
    assert outcomes(corpus, whole) == EXPECTED


def test_the_shards_hold_the_kept_clips_with_their_measures_and_nothing_else(corpus: Path, whole: Path) -> None:
    kinds = json.loads((corpus / "kinds.json").read_text())
    found: Counter[str] = Counter()
    for shard in list_shards(whole):
        for entry in load_shard_index(shard).episodes:
            meta = read_episode_metadata(shard, entry)
            found[kinds[meta["source"]]] += 1
            assert set(meta["scores"]) == {"black", "frozen"}
    assert found == {"moving": 9, "two shots": 2, "three shots": 3, "text": 1}
    assert not (whole / "staging").exists()


def test_the_report_counts_every_video_and_shows_what_was_removed(whole: Path) -> None:
    report = json.loads((whole / "report" / "report.json").read_text())
    assert report["files"] == {"found": 20, "kept": 12, "removed": 5, "skipped": 3, "missing": 0}
    assert report["clips"] == {"kept": 15, "removed": 5}
    assert {name: row["clips"] for name, row in report["removed"].items()} == {"black": 1, "frozen": 1, "duplicates": 3}
    page = (whole / "report" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + 2 * 3  # of duplicates also what they repeat
    assert "no longer readable" not in page


def test_an_ingest_that_is_killed_at_any_shard_of_either_pass_gives_the_same_bytes(
    corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[Path] = []

    def copying(function: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            keep_moment()
            result = function(*arguments)
            keep_moment()  # the shard is done, but the manifest does not know it yet
            return result

        return wrapped

    def keep_moment() -> None:
        moments.append(tmp_path / f"moment{len(moments)}")
        shutil.copytree(tmp_path / "run", moments[-1])

    with monkeypatch.context() as patch:
        for name in ("ingest_shard", "publish_shard"):
            patch.setattr(shard_ingest, name, copying(getattr(shard_ingest, name)))
        ingest(corpus, tmp_path / "run")
    expected = contents(whole)
    assert contents(tmp_path / "run") == expected and len(moments) == 20
    for moment in moments[1::3]:
        ingest(corpus, moment)
        assert contents(moment) == expected, moment.name


def test_clips_of_older_shards_stay_when_new_videos_repeat_them(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_video(source / "z.mp4", make_frames("moving", 1))
    ingest(source, out)
    before = contents(out)["shard-000000.tar"]
    shutil.copyfile(source / "z.mp4", source / "a.mp4")
    write_video(source / "b.mp4", make_frames("moving", 2))
    ingest(source, out)
    assert contents(out)["shard-000000.tar"] == before
    manifest = json.loads((out / "ingest.json").read_text())
    assert manifest["shards"][1]["duplicates"] == {"000001-0000-00000": "000000-0000-00000"}
    assert "removed 1 of 3 clips (duplicates 1)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings"):
        ingest(source, out, remove=None)


def test_a_filter_that_removes_everything_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", np.zeros((10, 72, 96, 3), np.uint8))
    with pytest.raises(ValueError, match=r"the filters removed all clips of its 1 videos; .*index\.html shows them"):
        ingest(tmp_path / "in", tmp_path / "out")


def test_measures_alone_remove_nothing(corpus: Path, tmp_path: Path) -> None:
    ingest(corpus, tmp_path / "out", shots=None, remove=None, measure=["motion", "text"])
    plain = tmp_path / "plain"
    ingest(corpus, plain, shots=None, remove=None)
    assert sum(outcomes(corpus, tmp_path / "out").values()) == 20
    assert [len(load_shard_index(s).episodes) for s in list_shards(plain)] == [
        len(load_shard_index(s).episodes) for s in list_shards(tmp_path / "out")
    ]
    assert not (plain / "clips").exists() and not (plain / "report").exists()
