"""The report as an HTML page with the plots and videos of its folder; it loads nothing over the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from vwm.eval.horizon_table import count_clear_gains, horizon_header, horizon_rows

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; } figcaption, .quiet { color: #666; font-size: 13px; }
img, video { max-width: 100%; }
figure video { width: 30rem; } figure img { max-height: 21rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12px; }
"""


def render_html_report(
    title: str, report: dict[str, Any], plots: Sequence[str], videos: Sequence[str], sheet: str, drift: str
) -> str:
    """Render the page.

    Args:
        title: title of the world.
        report: see ``vwm.eval.world_report.evaluate_world``.
        plots, videos, sheet, drift: file names, relative to the page; empty where there is none.
    """
    provenance = report["provenance"]
    subtitle = f"{report['data']['clips']} clips of {provenance['data']}, {provenance['environment']['date']}"
    parts = [
        f"<h1>{escape(title)}</h1><p class=quiet>{escape(subtitle)}</p>",
        _numbers_html(report),
        _horizons_html(report),
        "".join(f"<p>Note: {escape(note)}.</p>" for note in report["notes"]),
        "<h2>Plots</h2>" + "".join(f'<figure><img src="{escape(p)}" alt="{escape(p)}"></figure>' for p in plots),
        "<h2>Rollouts</h2>" + _rollouts_html(sheet, videos) if videos else "",
        _drift_html(drift) if drift else "",
        f"<h2>Provenance</h2><pre>{escape(json.dumps(provenance, indent=2))}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _drift_html(sheet: str) -> str:
    return (
        "<h2>Long play</h2><p class=quiet>The first start under held actions, a frame of each second.</p>"
        f'<img src="{escape(sheet)}" alt="long play">'
    )


def _rollouts_html(sheet: str, videos: Sequence[str]) -> str:
    shown = "".join(
        f'<figure><video src="{escape(video)}" autoplay loop muted playsinline controls></video></figure>'
        for video in videos
    )
    return (
        "<p class=quiet>Context | prediction | truth. The bar above the prediction is orange where frames are "
        f"predicted.</p>{shown}<p class=quiet>The same as images, two rows per clip: the truth, and the prediction "
        f'from the context and the actions.</p><img src="{escape(sheet)}" alt="rollouts">'
    )


def _numbers_html(report: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(what)}</td><td class=number>{escape(value)}</td><td class=quiet>{escape(meaning)}</td></tr>"
        for what, value, meaning in headline_rows(report)
    )
    return f"<h2>Numbers</h2><table>{rows}</table>"


def _horizons_html(report: dict[str, Any]) -> str:
    """Return the numbers of every horizon, folded."""
    head = "".join(f"<th>{escape(name)}</th>" for name in horizon_header(report))
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in horizon_rows(report))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<details><summary>Every horizon, in dB</summary><table><tr>{head}</tr>{body}</table></details>"


def headline_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the most important numbers: (name, value with unit, explanation)."""
    tokenizer, rollout, play = (report[key] for key in ("tokenizer", "rollout", "play"))
    horizon, seconds = len(rollout["psnr"]), rollout["horizon_seconds"]
    return [
        (
            "Tokenizer PSNR",
            _format_number(tokenizer["psnr"], "dB"),
            f"of the mean image: {_format_number(tokenizer['psnr_mean_image'], 'dB')}",
        ),
        ("Tokenizer SSIM", _format_number(tokenizer["ssim"], "", 3), "1 is perfect"),
        *_usage_rows(report),
        ("Rollout PSNR at horizon 1", _format_number(rollout["psnr"][0], "dB"), _format_baselines(rollout, 0)),
        (
            f"Rollout PSNR at horizon {horizon}",
            _format_number(rollout["psnr"][-1], "dB"),
            f"{seconds[-1]:.2f} s; {_format_baselines(rollout, -1)}",
        ),
        *_count_rows("Better than a copy", rollout.get("gain_over_copy_by_horizon")),
        *([] if report["control"] is None else _control_rows(report["control"])),
        *_usefulness_rows(report),
        (
            "Step",
            _format_number(play["step_ms"]["p50"], "ms"),
            f"95th percentile {_format_number(play['step_ms']['p95'], 'ms')}{_format_frames(play)}",
        ),
        (
            "Frames per second",
            _format_number(play["fps"], ""),
            f"one world, {report['provenance']['environment']['hardware']['device']}",
        ),
        *([] if report.get("comparison") is None else _comparison_rows(report["comparison"], play)),
    ]


def _count_rows(name: str, gains: Sequence[dict[str, Any]] | None) -> list[tuple[str, str, str]]:
    """Return the row that counts horizons; none for a report of a version that did not measure them."""
    if gains is None:
        return []
    above, below = count_clear_gains(gains)
    return [(name, f"{above} of {len(gains)}", f"horizons, beyond two standard errors; below at {below}")]


def _comparison_rows(comparison: dict[str, Any], play: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows about another world on the same clips."""
    per_frame = f"{_format_number(play['frame_ms'], 'ms')} a frame, {comparison['world']}: "
    return [
        *_count_rows("Better than the other world", comparison["gain_by_horizon"]),
        (
            "Speed against it",
            _format_number(comparison["frame_ms"] / play["frame_ms"], "×"),
            per_frame + _format_number(comparison["frame_ms"], "ms"),
        ),
    ]


def _usage_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows about codes and latent actions, where the world has them."""
    codebook, latent, rows = report["codebook"], report["latent_action"], []
    if codebook is not None:
        used = f"{codebook['used']} of {codebook['size']}"
        rows.append(("Codes used", used, f"perplexity {codebook['perplexity']:.1f}"))
    if latent is not None and "std" in latent:
        spread = sum(latent["std"]) / latent["size"]
        text = f"deviation of {latent['size']} continuous ones in [-1, 1], on average; uniform ones: 0.58"
        rows.append(("Latent actions", _format_number(spread, ""), text))
    elif latent is not None:
        rows.append(
            ("Latent actions used", _format_number(latent["perplexity"], ""), f"perplexity, of {latent['size']}")
        )
    return rows


def _control_rows(control: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows about the effect of actions."""
    delta, cost = control["delta_psnr"], control["shuffle_cost"]
    return [
        (
            f"ΔPSNR at horizon {delta['horizon']}",
            f"{_format_number(delta['mean'], '')} ± {_format_number(delta['stderr'], 'dB')}",
            "gain of the recorded actions over random ones; 0 where actions have no effect",
        ),
        *_count_rows("ΔPSNR above zero", control.get("delta_psnr_by_horizon")),
        (
            "Loss ratio of shuffled actions",
            _format_number(control["shuffle_ratio"], "×", 3),
            "not measured" if cost is None else f"{cost['loss']}; above 1 where actions matter",
        ),
        *_information_rows(control),
    ]


def _information_rows(control: dict[str, Any]) -> list[tuple[str, str, str]]:
    if control["action_mi_bits"] is None:
        return []
    text = f"above chance, of {_format_number(control['action_entropy_bits'], 'bits')} in the recorded actions"
    return [("Latent ↔ recorded action", _format_number(control["action_mi_bits"], "bits"), text)]


def _usefulness_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows about long play, motion, memory and signs of hallucination, where they could be measured."""
    rows = []
    following, drift, signs = report["action_following"], report["drift"], report["hallucination"]
    if following["flow"] is not None:
        value = _format_number(following["flow"]["correlation"], "")
        random = _format_number(following["flow"]["correlation_random_actions"], "")
        rows.append(("Motion of the scene", value, f"correlation with the true shift; under random actions: {random}"))
    if following["probe"] is not None:
        probe = following["probe"]
        real, constant = _format_number(probe["real"], ""), _format_number(probe["constant"], "")
        text = f"{probe['score']} of the actions read from predicted frames; from real frames: {real}, constant: "
        rows.append(("Inverse-dynamics probe", _format_number(probe["predicted"], ""), text + constant))
    if drift is not None:
        text = f"distance to real frames after {drift['seconds']} s of held actions, by {drift['features']}; floor "
        text += f"{_format_number(drift['floor'], '')}, mean image {_format_number(drift['mean_image'], '')}"
        rows.append(("Drift", _format_number(drift["mean_by_second"][-1], ""), text))
    for name, result in (report["revisit"] or {}).items():
        away = _format_number(result["turning_point"], "dB")
        text = f"PSNR to the start, {name}; at the turning point: {away}"
        rows.append(("Revisit", _format_number(result["returned"], "dB"), text))
    known = {name: r["last"] for name, r in signs.items() if r is not None and r["last"] is not None}
    if known:
        best = max(known, key=lambda name: known[name])
        text = f"rank correlation of {best.replace('_', ' ')} with the error at the last horizon"
        rows.append(("Best sign of hallucination", _format_number(known[best], ""), text))
    return rows


def _format_baselines(rollout: dict[str, Any], at: int) -> str:
    copied, ceiling = (
        _format_number(rollout["psnr_copy_last"][at], "dB"),
        _format_number(rollout["psnr_tokenizer"][at], "dB"),
    )
    return f"copy of the last frame: {copied}, the tokenizer's ceiling: {ceiling}"


def _format_frames(play: dict[str, Any]) -> str:
    if play["frames_per_step"] == 1:
        return ""
    return f"; {_format_number(play['frame_ms'], 'ms')} for each of its {play['frames_per_step']} frames"


def _format_number(value: float | None, unit: str, digits: int = 2) -> str:
    return "none" if value is None else f"{value:.{digits}f} {unit}".strip()
