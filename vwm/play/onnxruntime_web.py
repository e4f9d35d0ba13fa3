"""The files of onnxruntime-web, which computes ONNX graphs in browsers (WebGPU and WebAssembly, MIT licence)."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

RUNTIME_VERSION = "1.30.0"
RUNTIME_MODULE = "ort.wasm.min.mjs"
RUNTIME_FILES = (
    RUNTIME_MODULE,
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Of WebAssembly and of WebGPU; a page downloads those of the one that it uses."""
FETCH_SECONDS = 300
LARGEST_FILE = 2**28


def place_runtime(source: str | None, folder: Path) -> str:
    """Put onnxruntime-web next to a page.

    Args:
        source: a folder with its files (``dist`` of the npm package, or the package), or an address that serves them;
            None gets the package by npm.
        folder: of the page; the files go to its ``runtime``.

    Returns:
        Where the page finds the files: a path within ``folder``, or an address.

    Raises:
        ValueError: the files are not there, or npm is missing or fails.
    """
    if source is not None and source.startswith(("http://", "https://")):
        return source.rstrip("/")
    target = folder / "runtime"
    target.mkdir()
    if source is None:
        _fetch(target)
    else:
        given = Path(source)
        given = next((place for place in (given, given / "dist") if (place / RUNTIME_MODULE).is_file()), given)
        for name in RUNTIME_FILES:
            if not (given / name).is_file():
                raise ValueError(f"{given} has no {name}: give the folder dist of the npm package onnxruntime-web")
            shutil.copyfile(given / name, target / name)
    return target.name


def _fetch(target: Path) -> None:
    """Get the files by npm, which checks the package against its registry."""
    package = f"onnxruntime-web@{RUNTIME_VERSION}"
    remedy = f"Give the files of {package} with --runtime: a folder, or an address that serves them"
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"{package} is needed, and npm is not installed. {remedy}")
    with tempfile.TemporaryDirectory() as folder:
        words = [npm, "pack", package, "--pack-destination", folder, "--loglevel", "error"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"npm pack {package} took over {FETCH_SECONDS} s. {remedy}") from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"npm pack {package} failed: {reason}. {remedy}")
        _unpack(next(Path(folder).glob("*.tgz")), target)


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as package:
        for name in RUNTIME_FILES:
            file = package.extractfile(f"package/dist/{name}")
            assert file is not None, f"{archive} has no {name}"
            (target / name).write_bytes(file.read(LARGEST_FILE))
