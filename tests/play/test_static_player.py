"""``vwm export --web``: what it writes, and the page that computes its world, in a real browser where there is one."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch

from vwm.cli.main import main
from vwm.play.onnxruntime_web import RUNTIME_FILES, place_runtime
from vwm.play.static_player import export_static_world
from vwm.worlds.bundle import load_simulator, save_simulator

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'vwm[web]'")
RUNTIME = os.environ.get("VWM_ONNXRUNTIME_WEB")
"""The folder of the npm package onnxruntime-web, which a test cannot download."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "bundle"
    world = factories.dream()
    generator = torch.Generator().manual_seed(0)
    size = (2, world.spec.context_frames, *world.spec.context.shape)
    world.starts = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    save_simulator(world, folder)
    return folder


@pytest.fixture(scope="module")
def page(bundle: Path) -> Path:
    """An exported page whose runtime is at an address."""
    main(
        ["export", str(bundle), "--web", "--out", str(bundle.parent / "page"), "--runtime", "https://example.org/ort/"]
    )
    return bundle.parent / "page"


def test_a_page_holds_the_world_its_starts_and_the_player(bundle: Path, page: Path) -> None:
    world, description = load_simulator(bundle), json.loads((page / "world.json").read_text())
    assert description["contexts"] == list(world.starts.shape)
    assert (page / "starts.bin").read_bytes() == world.starts.numpy().tobytes()
    assert description["hello"]["title"] == world.spec.title and description["hello"]["starts"] == 2
    assert description["runtime"] == "https://example.org/ort/ort.wasm.min.mjs"
    assert 'data-world="world.json"' in (page / "index.html").read_text()
    assert {file.name for file in page.iterdir()} >= {"reset.onnx", "step.onnx", "weights.bin", "world_worker.js"}
    assert {file.name for file in (page / "starts").iterdir()} == {"0.png", "1.png"}


def test_a_failed_export_leaves_what_was_there(bundle: Path, page: Path, tmp_path: Path) -> None:
    before = sorted(page.rglob("*"))
    with pytest.raises(ValueError, match=r"has no ort.wasm.min.mjs: give the folder dist of the npm package"):
        export_static_world(bundle, page, page=True, runtime=str(tmp_path))
    assert sorted(page.rglob("*")) == before
    with pytest.raises(ValueError, match=r"exists and is no exported world"):
        export_static_world(bundle, bundle, page=True)
    with pytest.raises(ValueError, match=r"has no sampling setting steps"):
        export_static_world(bundle, tmp_path / "new", page=True, sampling={"steps": 2})
    assert not (tmp_path / "new").exists()


def test_the_runtime_is_copied_from_the_package_or_named_where_npm_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist, out = tmp_path / "package" / "dist", tmp_path / "out"
    dist.mkdir(parents=True)
    out.mkdir()
    for name in RUNTIME_FILES:
        (dist / name).write_text(name)
    assert place_runtime(str(tmp_path / "package"), out) == "runtime/ort.wasm.min.mjs"
    assert sorted(file.read_text() for file in (out / "runtime").iterdir()) == sorted(RUNTIME_FILES)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"npm is not installed. Give the files .* with --runtime"):
        place_runtime(None, tmp_path / "other")


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve files from another thread; yield the address."""
    handler = functools.partial(QuietFiles, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012  (as in the base class)
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        pass


PIXELS = """() => {
    const { width, height } = document.getElementById("screen");
    return [...document.getElementById("screen").getContext("2d").getImageData(0, 0, width, height).data];
}"""


def test_the_browser_shows_the_frames_of_python(bundle: Path, browser: Any) -> None:
    if RUNTIME is None:
        pytest.skip("VWM_ONNXRUNTIME_WEB is not set: the folder of `npm pack onnxruntime-web`, unpacked")
    folder, world, errors = bundle.parent / "played", load_simulator(bundle), []
    export_static_world(bundle, folder, page=True, runtime=RUNTIME)
    state, frame = world.reset(world.starts[:1], 0)
    with serve(folder) as address:
        page = browser.new_page()
        page.set_default_timeout(120_000)  # a busy machine computes a world slowly
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("[data-step='0']")
        page.keyboard.press("p")  # plays
        page.wait_for_selector("[data-mode='playing']")
        page.keyboard.press("p")  # and pauses, so that a press is one step
        page.keyboard.press("r")
        page.wait_for_selector("[data-step='0'] >> visible=true")
        frames, shown = [frame], [shown_frame(page, world)]
        for step, action in enumerate((1, 0, 1), start=1):
            page.click(f".act[data-action='{action}']")
            page.wait_for_selector(f"[data-step='{step}']")
            state, output = world.step(state, torch.tensor([action]))
            frames.append(output.frame)
            shown.append(shown_frame(page, world))
        page.keyboard.press("z")
        page.wait_for_selector("[data-step='2']")
        assert np.array_equal(shown_frame(page, world), shown[2])
        page.close()
    assert errors == []
    for expected, found in zip(frames, shown, strict=True):
        assert np.abs(found.astype(int) - expected[0].numpy()).max() <= 1


def shown_frame(page, world) -> np.ndarray:
    pixels = np.array(page.evaluate(PIXELS), np.uint8)
    return pixels.reshape(*world.spec.context.image_size, 4)[..., :3]
