"""Model cards: the README.md of a bundle, with the front matter that the hub reads and the figures of its report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vwm.core.network_simulator import NetworkSimulator
from vwm.eval.report_figures import report_figures
from vwm.hub.front_matter import with_front_matter
from vwm.worlds.families import find_family

LIBRARY = "vwm"
MEASURED_HEADING = "## Measured with vwm eval"


def world_card(simulator: NetworkSimulator, origin: str) -> str:
    """Return the card of an exported world.

    Args:
        simulator: the world.
        origin: a sentence about what it was exported from.
    """
    sizes = ", ".join(
        f"{n} {sum(p.numel() for p in m.parameters()) / 1e6:.2f}M" for n, m in simulator.networks().items()
    )
    spec = simulator.spec
    shown = f"{spec.context.image_size[0]}x{spec.context.image_size[1]} pixels" if spec.context.is_image else "vectors"
    text = (
        f"# {spec.title}\n\nA vwm world ({find_family(simulator).title}): {shown} at {spec.fps:g} frames a second. "
        f"Parameters: {sizes}. {origin}\n"
    )
    if spec.observation.is_image:
        text += "\n    vwm play FOLDER\n"
    if spec.actions.names:
        actions = "\n".join(f"- {i}: {name}" for i, name in enumerate(spec.actions.names))
        text += f"\nActions{' (learned)' if spec.actions.latent else ''}:\n\n{actions}\n"
    return with_front_matter(text, card_metadata(simulator))


def card_metadata(simulator: NetworkSimulator | None, license_name: str | None = None) -> dict[str, Any]:
    """Return what the hub reads of a card: library, kind of model, tags and license.

    Args:
        simulator: the world; None for networks without a simulator.
        license_name: an identifier of the hub, such as ``mit``; None leaves it as it was.
    """
    found: dict[str, Any] = {"library_name": LIBRARY}
    if simulator is None:
        found |= {"pipeline_tag": "feature-extraction", "tags": [LIBRARY]}
    else:
        shows = simulator.spec.observation.is_image
        found["pipeline_tag"] = "image-to-video" if shows else "reinforcement-learning"
        found["tags"] = [LIBRARY, "world-model", find_family(simulator).name]
    return found if license_name is None else found | {"license": license_name}


def publish_card(card: str, repository: str, metadata: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """Return the card of a bundle for its page on the hub.

    Args:
        card: its README.md.
        repository: its name on the hub, which the command to play it gets.
        metadata: see ``card_metadata``.
        report: of ``vwm eval``, whose figures take the place of earlier ones; None leaves those.
    """
    card = re.sub(r"^    vwm play \S+$", f"    vwm play {repository}", card, flags=re.MULTILINE)
    if report is not None:
        earlier = rf"\n*^{re.escape(MEASURED_HEADING)}$.*?(?=^## |\Z)"
        card = re.sub(earlier, "\n\n", card, flags=re.MULTILINE | re.DOTALL)
        card = f"{card.rstrip()}\n\n{report_section(report)}"
    return with_front_matter(card, metadata)


def report_section(report: Mapping[str, Any]) -> str:
    """Return the figures of a report as a section of a card."""
    source, clips = report["provenance"], report["data"]["clips"]
    rows = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in report_figures(report))
    environment = source["environment"]
    hardware = environment["hardware"]
    return (
        f"{MEASURED_HEADING}\n\n{clips} clips of {source['data']}, {environment['date'][:10]}, on "
        f"{hardware['gpu'] or hardware['cpu']}, vwm {environment['versions']['vwm']}.\n\n"
        f"| measure | value | meaning |\n|---|---|---|\n{rows}\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
