"""``vwm export --web``: what it writes, and the page that computes its world, in a real browser where there is one."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import factories
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from vwm.cli.main import main
from vwm.data.action_files import read_action_file
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
    assert description["runtime"] == "https://example.org/ort"
    shown = (page / "check.bin").read_bytes()
    state, frame = world.reset(world.starts[:1], description["check"]["seed"])
    expected = [frame]
    for action in description["check"]["actions"]:
        state, output = world.step(state, torch.tensor([action]))
        expected.append(output.frame)
    assert len(expected) == 3 and shown == torch.cat(expected).numpy().tobytes()
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
    assert place_runtime(str(tmp_path / "package"), out) == "runtime"
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


@pytest.fixture(scope="module")
def played(bundle: Path) -> Path:
    """An exported page with its runtime."""
    if RUNTIME is None:
        pytest.skip("VWM_ONNXRUNTIME_WEB is not set: the folder of `npm pack onnxruntime-web`, unpacked")
    export_static_world(bundle, bundle.parent / "played", page=True, runtime=RUNTIME)
    return bundle.parent / "played"


@contextmanager
def open_page(browser: Any, folder: Path, backend: str = "") -> Iterator[Any]:
    """Open a static world, and wait for its first frame."""
    errors: list[str] = []
    with serve(folder) as address:
        page = browser.new_page()
        page.set_default_timeout(120_000)  # a busy machine computes a world slowly
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + backend)
        page.wait_for_selector("[data-step='0'], [data-mode='lost']")
        yield page
        page.close()
    assert errors == []


def pause(page: Any) -> None:
    """Pause, so that a press is one step, and reset."""
    page.keyboard.press(".")  # one step, and a pause
    page.wait_for_selector("[data-step='1']")
    page.keyboard.press("r")
    page.wait_for_selector("[data-step='0']")


def act(page: Any, action: int, step: int) -> None:
    page.click(f".act[data-action='{action}']")
    page.wait_for_selector(f"[data-step='{step}']")


def largest_difference(shown: list[np.ndarray], expected: list[torch.Tensor]) -> int:
    return max(
        int(np.abs(found.astype(int) - frame[0].numpy()).max()) for found, frame in zip(shown, expected, strict=True)
    )


def test_the_browser_shows_and_records_the_frames_of_python(
    bundle: Path, played: Path, browser: Any, tmp_path: Path
) -> None:
    world = load_simulator(bundle)
    state, frame = world.reset(world.starts[:1], 0)
    with open_page(browser, played) as page:
        # the tests' browser computes WebGPU on the processor
        assert page.get_attribute("body", "data-backend") == "wasm"
        assert "1 thread: WebGPU has only google swiftshader here" in page.inner_text("#backend")
        pause(page)
        page.keyboard.press("v")
        page.wait_for_selector("#rec-badge >> visible=true")
        frames, shown = [frame], [shown_frame(page, world)]
        for step, action in enumerate((1, 0, 1), start=1):
            act(page, action, step)
            state, output = world.step(state, torch.tensor([action]))
            frames.append(output.frame)
            shown.append(shown_frame(page, world))
        page.keyboard.press("z")
        page.wait_for_selector("[data-step='2']")
        assert np.array_equal(shown_frame(page, world), shown[2])
        page.click("#record")
        page.wait_for_selector("#rec-badge", state="hidden")
        for button in ("video", "gif", "csv"):
            with page.expect_download() as download:
                page.click(f"#{button}")
            download.value.save_as(tmp_path / download.value.suggested_filename)
    assert largest_difference(shown, frames) <= 1
    check_recording(tmp_path, shown[:3], [1, 0, 0], world.spec.fps)


def check_recording(folder: Path, shown: list[np.ndarray], actions: list[int], fps: float) -> None:
    with Image.open(folder / "play.gif") as gif:
        pictures = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    assert len(pictures) == len(shown)
    for picture, frame in zip(pictures, shown, strict=True):  # 256 colors of each frame
        assert np.abs(picture.astype(int) - frame).mean() < (0.5 if colors(frame) <= 256 else 12)
    with av.open(str(folder / "play.webm")) as video:
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        rate = video.streams.video[0].average_rate
        assert rate is not None and float(rate) == pytest.approx(fps, rel=1e-3)
        assert video.duration / 1e6 == pytest.approx(len(shown) / fps, rel=1e-3)
    assert [picture.shape for picture in decoded] == [frame.shape for frame in shown]
    assert max(np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() for a, b in zip(decoded, shown, strict=True)) < 12
    stated = read_action_file(folder / "play.webm")
    assert stated is not None and stated.values.tolist() == actions


def colors(frame: np.ndarray) -> int:
    return len(np.unique(frame.reshape(-1, 3), axis=0))


def test_an_uploaded_image_is_a_start_and_what_is_no_image_is_named(
    bundle: Path, played: Path, browser: Any, tmp_path: Path
) -> None:
    world = load_simulator(bundle)
    picture = np.random.default_rng(3).integers(0, 256, (*world.spec.context.image_size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("no image")
    context = torch.from_numpy(picture).expand(1, world.spec.context_frames, -1, -1, -1)
    state, frame = world.reset(context, 0)
    with open_page(browser, played, "?backend=wasm") as page:
        assert "as the address asks" in page.inner_text("#backend")
        page.set_input_files("#file", tmp_path / "text.png")
        page.wait_for_selector("text=this file is not an image that the browser decodes")
        pause(page)
        frames = int(page.get_attribute("#screen", "data-frames"))
        page.set_input_files("#file", tmp_path / "picture.png")
        page.wait_for_selector(f"[data-frames='{frames + 1}']")
        act(page, 1, 1)
        page.keyboard.press("z")
        page.wait_for_selector("[data-step='0']")
        shown = [shown_frame(page, world)]
        act(page, 1, 1)
        shown.append(shown_frame(page, world))
    assert largest_difference(shown, [frame, world.step(state, torch.tensor([1]))[1].frame]) <= 1


def test_a_page_whose_webgpu_fails_plays_by_webassembly(played: Path, browser: Any, tmp_path: Path) -> None:
    broken = shutil.copytree(played, tmp_path / "broken")
    (broken / "runtime" / "ort.webgpu.min.mjs").unlink()
    with open_page(browser, broken, "?backend=webgpu") as page:
        assert page.get_attribute("body", "data-backend") == "wasm"
        assert "WebGPU (google swiftshader) failed: " in page.inner_text("#backend")
    with open_page(browser, broken, "?backend=cuda") as page:
        assert "backend=cuda: give auto, webgpu or wasm" in page.inner_text("#veil-text")


@pytest.mark.skipif("VWM_WEBGPU" not in os.environ, reason="WebGPU on the processor takes a minute: set VWM_WEBGPU=1")
def test_webgpu_shows_the_frames_of_python_or_is_not_trusted(bundle: Path, played: Path, browser: Any) -> None:
    world, shown = load_simulator(bundle), []
    state, frame = world.reset(world.starts[:1], 0)
    frames = [frame]
    with open_page(browser, played, "?backend=webgpu") as page:
        assert page.inner_text("#backend") == "computed by WebGPU: google swiftshader"
        pause(page)
        shown.append(shown_frame(page, world))
        for step, action in enumerate((1, 0, 1), start=1):
            act(page, action, step)
            state, output = world.step(state, torch.tensor([action]))
            frames.append(output.frame)
            shown.append(shown_frame(page, world))
    assert largest_difference(shown, frames) <= 1
    wrong = bytes(255 - value for value in (played / "check.bin").read_bytes())
    (played / "check.bin").write_bytes(wrong)
    with open_page(browser, played, "?backend=webgpu") as page:
        assert page.get_attribute("body", "data-backend") == "wasm"
        assert "failed: its frames differ from Python's by" in page.inner_text("#backend")


def shown_frame(page, world) -> np.ndarray:
    pixels = np.array(page.evaluate(PIXELS), np.uint8)
    return pixels.reshape(*world.spec.context.image_size, 4)[..., :3]
