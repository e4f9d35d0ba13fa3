"""Folders are written completely or not at all, and replace only folders of their own kind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from vwm.core.atomic_files import atomic_folder, atomic_write, atomic_write_text, check_replaceable_folder
from vwm.core.folder_lock import FolderInUseError, lock_folder
from vwm.core.full_disk import name_full_disk


def test_a_folder_replaces_the_old_one_only_when_complete(tmp_path):
    out = tmp_path / "report"
    for text in ("first", "second"):
        with atomic_folder(out) as temporary:
            (temporary / text).write_text(text)
            assert not (out / text).exists()
        assert [p.name for p in out.iterdir()] == [text] and not temporary.exists()


def test_an_error_while_writing_keeps_the_old_folder_and_leaves_no_files(tmp_path):
    out = tmp_path / "report"
    with atomic_folder(out) as temporary:
        (temporary / "old").write_text("")
    with pytest.raises(RuntimeError), atomic_folder(out) as temporary:
        (temporary / "half").write_text("")
        raise RuntimeError
    assert [p.name for p in out.iterdir()] == ["old"]
    with atomic_folder(out) as temporary:
        assert not list(temporary.iterdir())


def test_only_folders_of_the_same_kind_and_empty_ones_are_replaced(tmp_path):
    check_replaceable_folder(tmp_path / "new", "mark.json", "report")
    (tmp_path / "empty").mkdir()
    check_replaceable_folder(tmp_path / "empty", "mark.json", "report")
    (tmp_path / "mark.json").write_text("")
    check_replaceable_folder(tmp_path, "mark.json", "report")
    for folder in (tmp_path / "mark.json", tmp_path):
        with pytest.raises(ValueError, match=r"is no report \(it has no other\.json\)"):
            check_replaceable_folder(folder, "other.json", "report")


def test_a_folder_below_a_file_or_without_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    message = r"out.* cannot be made: .*file is a file, not a folder; choose another one"
    with pytest.raises(FileExistsError, match=message):
        check_replaceable_folder(file / "out" / "report", "mark.json", "report")
    with pytest.raises(FileExistsError, match=message), lock_folder(file / "out", "recording"):
        pass
    with pytest.raises(FileExistsError, match=r"^/.*file is a file, not a folder"), atomic_write(file / "out"):
        pass
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match=rf"no permission to write into {tmp_path}; choose"):
        check_replaceable_folder(tmp_path / "out" / "report", "mark.json", "report")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from vwm.core.atomic_files import atomic_folder, atomic_write
with atomic_write(Path(sys.argv[1]) / "state.pt") as file, atomic_folder(Path(sys.argv[1]) / "report") as folder:
    file.write(b"half")
    (folder / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_keeps_old_files_and_the_next_writer_removes_its_temporary_files(tmp_path):
    atomic_write_text(tmp_path / "state.pt", "old")
    with atomic_folder(tmp_path / "report") as folder:
        (folder / "old").write_text("")
    foreign = ["state.pt.tmp", "report.tmp", ".state.pt.elsewhere.1.0123abcd.tmp"]
    for name in foreign:
        (tmp_path / name).mkdir()
    process = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "state.pt").read_text() == "old" and (tmp_path / "report" / "old").exists()
    assert len(list(tmp_path.iterdir())) == 2 + 2 + 1 + len(foreign)  # the lock is a file, too
    atomic_write_text(tmp_path / "state.pt", "new")
    with atomic_folder(tmp_path / "report") as folder:
        (folder / "new").write_text("")
    assert {p.name for p in tmp_path.iterdir()} == {"state.pt", "report", *foreign}
    assert (tmp_path / "state.pt").read_text() == "new" and [p.name for p in (tmp_path / "report").iterdir()] == ["new"]


def test_a_folder_is_restored_if_its_replacement_was_killed_between_renames(tmp_path):
    with atomic_folder(tmp_path / "report") as folder:
        (folder / "old").write_text("")
        host = folder.name.split(".")[2]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "report").rename(tmp_path / f".report.{host}.{process.pid}.0123abcd.old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "report"):
        raise RuntimeError
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["old"] and len(list(tmp_path.iterdir())) == 1


def test_temporary_files_of_a_live_writer_are_kept(tmp_path):
    with atomic_write(tmp_path / "state.pt") as first:
        first.write(b"first")
        atomic_write_text(tmp_path / "state.pt", "second")
    assert (tmp_path / "state.pt").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "report") as folder:
        (folder / "old").write_text("")

    def seen() -> list[str]:
        return [p.name for p in (tmp_path / "report").iterdir()]

    renames = []
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda path, to: (renames.append(seen()), rename(path, to), renames.append(seen()))
    )
    with atomic_folder(tmp_path / "report") as folder:
        (folder / "new").write_text("")
    assert seen() == ["new"] and all(names == ["new"] for names in renames)  # already exchanged at the first rename


def test_two_processes_do_not_replace_a_folder_at_once(tmp_path):
    code = "import sys; from vwm.core.atomic_files import atomic_folder\nwith atomic_folder(sys.argv[1]): input()"
    with (
        subprocess.Popen(
            [sys.executable, "-c", code.replace("input()", "print(flush=True); input()"), str(tmp_path / "report")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other,
    ):
        other.stdout.readline()
        with pytest.raises(FolderInUseError, match=f"another process writes there .process {other.pid} on"):
            atomic_folder(tmp_path / "report").__enter__()
        other.communicate(b"\n")
    with atomic_folder(tmp_path / "report") as folder:
        (folder / "mine").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux, on which every write finds a full disk")
def test_a_full_disk_is_an_error_that_names_the_file_whichever_library_writes():
    def python() -> None:
        with Path("/dev/full").open("w") as file:
            file.write("text")

    def pytorch() -> None:
        with Path("/dev/full").open("wb") as file:
            torch.save({"weight": torch.zeros(50_000)}, file)

    def safetensors() -> None:  # its text; save_file would rename a file over the device
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for write in (python, pytorch, safetensors):
        with (
            pytest.raises(OSError, match=r"No space left on device: 'runs/last\.ckpt'"),
            name_full_disk("runs/last.ckpt"),
        ):
            write()
    with pytest.raises(RuntimeError, match="other"), name_full_disk("runs/last.ckpt"):
        raise RuntimeError("other")
