"""Folders appear whole or not at all, and replace only their own kind."""

import pytest

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder


def test_a_folder_takes_the_old_ones_place_when_it_is_whole(tmp_path):
    out = tmp_path / "report"
    for text in ("first", "second"):
        with atomic_folder(out) as aside:
            (aside / text).write_text(text)
            assert not (out / text).exists()
        assert [p.name for p in out.iterdir()] == [text] and not aside.exists()


def test_an_error_on_the_way_leaves_the_old_one_and_nothing_of_it_stays_in_the_next(tmp_path):
    out = tmp_path / "report"
    with atomic_folder(out) as aside:
        (aside / "old").write_text("")
    with pytest.raises(RuntimeError), atomic_folder(out) as aside:
        (aside / "half").write_text("")
        raise RuntimeError
    assert [p.name for p in out.iterdir()] == ["old"]
    with atomic_folder(out) as aside:
        assert not list(aside.iterdir())


def test_only_the_same_kind_and_empty_folders_are_replaced(tmp_path):
    check_replaceable_folder(tmp_path / "new", "mark.json", "report")
    (tmp_path / "empty").mkdir()
    check_replaceable_folder(tmp_path / "empty", "mark.json", "report")
    (tmp_path / "mark.json").write_text("")
    check_replaceable_folder(tmp_path, "mark.json", "report")
    for folder in (tmp_path / "mark.json", tmp_path):
        with pytest.raises(ValueError, match=r"is no report \(it has no other\.json\)"):
            check_replaceable_folder(folder, "other.json", "report")
