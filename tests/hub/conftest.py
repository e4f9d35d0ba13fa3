"""A hub for each test, which huggingface_hub is set to, and a small bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import genie
from hub_server import Hub, run_hub
from huggingface_hub import constants, file_download

from vwm.worlds.bundle import save_simulator


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 16x16 pixels."""
    folder = tmp_path_factory.mktemp("bundles") / "noise"
    save_simulator(genie(), folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub; the cache of huggingface_hub is empty, too, and no token is stored."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.chdir(tmp_path)
    with run_hub() as running:
        template = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


@pytest.fixture
def pushed(hub: Hub, bundle: Path) -> Hub:
    """A hub with the bundle as ``tester/noise``, and with a pickle and code next to it."""
    files = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()}
    hub.add("tester/noise", {**files, ".gitattributes": b"", "pytorch_model.bin": b"pickle" * 5000, "run.py": b"!"})
    return hub
