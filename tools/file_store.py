"""Serve a folder as the buckets of an S3 store: list, HEAD and GET with ranges and conditions; no signature is checked.

It is what `vwm bench data` was timed against on one machine: aiohttp sends files by the system's sendfile, so that the
server costs little compared with the reader.

    python tools/file_store.py FOLDER --port 5055
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web


def make_app(folder: Path) -> web.Application:
    """Return the server of a folder whose subfolders are buckets."""

    async def answer(request: web.Request) -> web.StreamResponse:
        bucket, _, key = request.path.lstrip("/").partition("/")
        place = folder / bucket
        if not place.is_dir():
            return error(404, "NoSuchBucket")
        if not key:
            return list_objects(place, request.query.get("prefix", ""), request.query.get("delimiter", ""))
        file = place / key
        return web.FileResponse(file) if file.is_file() else error(404, "NoSuchKey")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


def error(status: int, code: str) -> web.Response:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(status=status, text=body, content_type="application/xml")


def list_objects(place: Path, prefix: str, delimiter: str) -> web.Response:
    files = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    found = [name for name in files if name.startswith(prefix) and not (delimiter and delimiter in name[len(prefix) :])]
    folders = {prefix + name[len(prefix) :].split(delimiter)[0] + delimiter for name in files
               if delimiter and name.startswith(prefix) and delimiter in name[len(prefix) :]}  # fmt: skip
    entries = "".join(
        f"<Contents><Key>{escape(name)}</Key><Size>{files[name].stat().st_size}</Size>"
        f"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for name in found
    )
    entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
    body = f"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    return web.Response(text=body, content_type="application/xml")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=5055)
    options = parser.parse_args()
    web.run_app(make_app(options.folder), host="127.0.0.1", port=options.port, print=None)
