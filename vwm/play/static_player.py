"""``vwm export --web`` and ``--onnx``: a world as static files, which runs without Python.

The folder holds the world's graphs (``vwm.worlds.onnx_graphs``), ``world.json`` and ``starts.bin`` (uint8
[n, t, h, w, 3]); with a page also the player's page, whose worker computes the graphs in the browser.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.command_output import print_next_command, print_output
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.spaces import ActionSpace
from vwm.data.action_files import format_action_table
from vwm.play.app import PAGE_FOLDER
from vwm.play.images import encode_png
from vwm.play.onnxruntime_web import RUNTIME_VERSION, place_runtime
from vwm.play.world_description import describe_world
from vwm.worlds.bundle import load_simulator
from vwm.worlds.onnx_graphs import CHECKED_STEPS, LARGEST_MEAN_DIFFERENCE, example_action, export_graphs

DESCRIPTION_FILE = "world.json"
MOST_UPLOAD_BYTES = 16_000_000
CHECK_SEED = 1
PAGE_CHECKED_STEPS = 2
"""Steps that a page compares with Python's before it trusts a graphics card."""


def export_static_world(
    bundle: Path, out: Path, page: bool, runtime: str | None = None, sampling: dict[str, Any] | None = None
) -> None:
    """Write a world as ONNX graphs, with or without a page that plays them.

    Args:
        bundle: folder of the world, or its name.
        out: the folder to make; an earlier export is replaced.
        page: whether to add the player's page.
        runtime: where onnxruntime-web is; see ``place_runtime``.
        sampling: settings of the sampler that differ from the bundle's.

    Raises:
        ValueError: the world cannot be exported, ``out`` is something else, or onnxruntime-web cannot be had; nothing
            is written.
    """
    check_replaceable_folder(out, DESCRIPTION_FILE, "exported world")
    simulator = load_simulator(bundle, "cpu", accelerate="none").with_sampling(**(sampling or {}))
    with atomic_folder(out) as folder:
        print(f"converting {bundle} to ONNX (about a minute)", flush=True)
        difference = export_graphs(simulator, folder)
        assert simulator.starts is not None
        starts = simulator.starts.numpy()
        (folder / "starts.bin").write_bytes(starts.tobytes())
        description = {
            "hello": describe_world(simulator, MOST_UPLOAD_BYTES, ""),
            "action_columns": _action_columns(simulator.spec.actions),
            "contexts": starts.shape,
            "largest_difference": difference,
        }
        if page:
            description["runtime"] = place_runtime(runtime, folder)
            description["check"] = _write_check(simulator, folder / "check.bin")
            _copy_page(folder)
            (folder / "starts").mkdir()
            for index, start in enumerate(starts):
                (folder / "starts" / f"{index}.png").write_bytes(encode_png(start[-1]))
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
        (folder / "README.md").write_text(_card(simulator.spec.title, page))
    print(f"{CHECKED_STEPS} steps in onnxruntime: pixels differ from Python's by at most {difference:.0f} of 255")
    print_output(out, "a page that computes its world" if page else "reset.onnx and step.onnx")
    if page:
        print_next_command(f"python -m http.server 8000 --directory {out}")


def _action_columns(space: ActionSpace) -> str:
    """Return the first line of a table of actions."""
    rows = np.zeros((0,) if space.is_discrete else (0, space.size), np.int64 if space.is_discrete else np.float32)
    return format_action_table(space, rows).rstrip("\n")


def _write_check(simulator: NetworkSimulator, file: Path) -> dict[str, Any]:
    """Write the first frames of a start, uint8, which a page compares with its own; return how to compute them."""
    assert simulator.starts is not None
    state, frame = simulator.reset(simulator.starts[:1], CHECK_SEED)
    frames, actions = [frame], []
    for number in range(PAGE_CHECKED_STEPS):
        action = example_action(simulator, number)
        state, output = simulator.step(state, action)
        assert output.frame is not None, "a step with decode=True shows frames"
        frames.append(output.frame)
        actions.append(action[0].tolist())
    file.write_bytes(b"".join(shown.numpy().tobytes() for shown in frames))
    return {"seed": CHECK_SEED, "actions": actions, "largest_mean": LARGEST_MEAN_DIFFERENCE}


def _copy_page(folder: Path) -> None:
    for file in PAGE_FOLDER.iterdir():
        shutil.copyfile(file, folder / file.name)
    index = folder / "index.html"
    text = index.read_text()
    marked = text.replace("<body ", f'<body data-world="{DESCRIPTION_FILE}" ', 1)
    assert marked != text, "index.html has no body"
    index.write_text(marked.replace("<title>vwm play</title>", "<title>vwm</title>"))


def _card(title: str, page: bool) -> str:
    files = (
        "`reset.onnx` (a context and a seed to the first frame and the state) and `step.onnx` (an action and the state "
        "to a frame, reward, end of the episode and the next state) read their weights from `weights.bin`. "
        "`starts.bin` holds the contexts of `world.json`, uint8."
    )
    serve = (
        "\n\nServe this folder with any web server and open `index.html` there: the browser computes the world, and "
        "nothing is sent anywhere. It uses WebGPU where it has a graphics card for it (on pages with https or on "
        "localhost), else WebAssembly; `?backend=webgpu` and `?backend=wasm` choose. Two or more threads of "
        "WebAssembly need the headers `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy: "
        f"require-corp`. `runtime/` is onnxruntime-web {RUNTIME_VERSION} (MIT licence)."
    )
    return f"# {title}\n\nA vwm world as ONNX graphs. {files}{serve if page else ''}\n"
