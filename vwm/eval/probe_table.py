"""The Markdown table of a probe report."""

from __future__ import annotations

from typing import Any

PROBE_TITLES = {
    "attentive": "Attentive",
    "linear": "Linear on the mean",
    "knn": "Nearest neighbors",
    "ridge": "Ridge on all tokens",
}
VERDICT_TEXTS = {"better": "better", "worse": "worse", "open": "no difference shown"}


def render_probe_report(report: dict[str, Any]) -> str:
    """Format scores, differences to the controls, and the data as Markdown."""
    labels, rows = report["labels"], report["rows"]
    probes = list(rows[0]["probes"])
    lines = [f"# Probes of frozen features, {labels['score']}", "", *_describe_data(report), ""]
    lines += _markdown_table(
        ["Features", "Tokens × width", *(PROBE_TITLES[p] for p in probes)], [_score_cells(row) for row in rows]
    )
    lines += ["", "Differences on the same test episodes:", ""]
    compared = [
        [row["name"], f"minus {control}", *(_format_verdict(found[p]) for p in probes)]
        for row in rows
        if row["role"] == "model"
        for control, found in row["against"].items()
    ]
    lines += _markdown_table(["Features", "Control", *(PROBE_TITLES[p] for p in probes)], compared)
    if labels["kind"] == "numbers":
        lines += ["", "By number, of the models:", "", *_output_rows(report, probes)]
    if labels["excluded"]:
        excluded = "; ".join(f"{name} ({why})" for name, why in labels["excluded"].items())
        lines += ["", f"Excluded: {excluded}."]
    return "\n".join(lines) + "\n"


def _describe_data(report: dict[str, Any]) -> list[str]:
    labels, data = report["labels"], report["data"]
    what = f"{len(labels['names'])} numbers" if labels["kind"] == "numbers" else f"{len(labels['names'])} classes"
    parts = ", ".join(f"{part} {d['clips']} clips of {d['episodes']} episodes" for part, d in data.items())
    return [
        f"{what}; {parts}. [95% interval over test episodes.] A constant prediction scores {labels['chance']:.3f}.",
    ]


def _score_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['tokens']} × {row['width']}",
        *(_format_interval(p["score"]) for p in row["probes"].values()),
    ]


def _output_rows(report: dict[str, Any], probes: list[str]) -> list[str]:
    rows = []
    for row in report["rows"]:
        if row["role"] == "model":
            for i, name in enumerate(report["labels"]["names"]):
                found = (row["probes"][probe]["by_output"][i] for probe in probes)
                rows.append([row["name"], name, *map(_format_interval, found)])
    return _markdown_table(["Features", "Number", *(PROBE_TITLES[p] for p in probes)], rows)


def _format_interval(score: dict[str, float | None]) -> str:
    return f"{_format_score(score['value'])} [{_format_score(score['low'])}, {_format_score(score['high'])}]"


def _format_verdict(difference: dict[str, Any]) -> str:
    return f"{_format_interval(difference)} {VERDICT_TEXTS[difference['verdict']]}"


def _format_score(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
