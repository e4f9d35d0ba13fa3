"""The page of a curation report: counts, and pictures of what each filter removed."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.clip_tables import ClipRecord
from vwm.data.curation.filters import FILTERS
from vwm.data.timeouts import call_with_timeout

PICTURES = 24
"""Pictures of removed clips for each filter, spread evenly over all that it removed."""
PICTURE_HEIGHT = 108
PICTURE_TIMEOUT = 20.0
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; } figure { margin: 0; max-width: 26rem; }
figcaption { font-size: 12px; color: #555; overflow-wrap: anywhere; max-width: 24rem; }
"""

RemovedClip = tuple[ClipRecord, ClipRecord | None]
"""A removed clip, and of a duplicate the clip that it repeats."""


def format_page(folder: str, summary: dict[str, Any], removed: dict[str, list[RemovedClip]]) -> str:
    """Return the page as HTML.

    Args:
        folder: of the videos, from which the pictures are decoded.
        summary: the content of ``report.json``.
        removed: the clips that each filter removed.
    """
    limits: dict[str, float] = summary["settings"]["limits"]
    sections = [_format_section(folder, name, limits[name], clips) for name, clips in removed.items() if clips]
    if not sections:
        sections = ["<p>No clip was removed.</p>"]
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Curation report</title>\n'
        f"<style>{STYLE}</style>\n<h1>Curation report</h1>\n<p>Videos: {html.escape(_readable(folder))}</p>\n"
        f"{_format_counts(summary)}\n" + "\n".join(sections) + "\n</html>\n"
    )


def _format_counts(summary: dict[str, Any]) -> str:
    files, clips, frames = summary["files"], summary["clips"], summary["frames"]
    rows = [
        ("videos found", files["found"]),
        ("with clips in the shards", files["kept"]),
        ("of which all clips were removed", files["removed"]),
        ("that could not be read", files["skipped"]),
        ("of which only the beginning could be read", summary["truncated"]),
        ("clips kept", clips["kept"]),
        ("clips removed", clips["removed"]),
        ("frames kept", frames["kept"]),
        ("frames removed", frames["removed"]),
    ]
    cells = "".join(f'<tr><td>{name}<td class="number">{count}</tr>' for name, count in rows)
    return f"<table>{cells}</table>"


def _format_section(folder: str, name: str, limit: float, clips: list[RemovedClip]) -> str:
    kind = FILTERS[name]
    rule = "at most" if name == "duplicates" else "below" if kind.removes_below else "above"
    step = max(1, len(clips) / PICTURES)
    chosen = [clips[int(i * step)] for i in range(min(PICTURES, len(clips)))]
    figures = "".join(_format_figure(folder, name, record, original) for record, original in chosen)
    shown = f", of which {len(chosen)} are shown" if len(chosen) < len(clips) else ""
    return (
        f"<h2>{name}: {len(clips)} clips removed</h2>\n<p>Removed where {rule} {limit:g}: {kind.meaning}{shown}.</p>\n"
        f'<div class="pictures">{figures}</div>'
    )


def _format_figure(folder: str, name: str, record: ClipRecord, original: ClipRecord | None) -> str:
    images = "".join(_format_image(folder, r) for r in (record, original) if r is not None)
    score = f" &middot; {record.scores[name]:.3g}" if name in record.scores else ""
    caption = f"{html.escape(_readable(record.source))}, frame {record.first_frame}{score}"
    if original is not None:
        caption += f" repeats {html.escape(_readable(original.source))}, frame {original.first_frame}"
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _format_image(folder: str, record: ClipRecord) -> str:
    frame = read_source_frame(folder, record.source, record.middle_frame)
    if frame is None:
        return "<em>no longer readable</em> "
    data = base64.b64encode(_encode_picture(frame)).decode()
    return f'<img src="data:image/jpeg;base64,{data}" height="{PICTURE_HEIGHT}" alt=""> '


def read_source_frame(folder: str, source: str, index: int) -> NDArray[np.uint8] | None:
    """Decode one frame of a video, uint8 [H, W, 3]; None where the video is gone, damaged or hangs the decoder."""
    from vwm.data.video import decode_frames  # it needs PyAV

    try:
        frames = call_with_timeout(lambda: decode_frames(Path(folder) / source, [index], source), PICTURE_TIMEOUT)
    except (ValueError, OSError, TimeoutError, RuntimeError):
        return None
    return frames[0]


def _encode_picture(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    height, width = frame.shape[:2]
    file = io.BytesIO()
    size = (max(1, round(width * PICTURE_HEIGHT / height)), PICTURE_HEIGHT)
    Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def _readable(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="replace")
