"""The front matter of model cards: YAML between lines of dashes, which the hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n*", re.DOTALL)


def read_front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into its front matter, empty where it has none that can be read, and its text."""
    matched = _FRONT_MATTER.match(card)
    if matched is None:
        return {}, card
    try:
        found = yaml.safe_load(matched[1])
    except (yaml.YAMLError, RecursionError):
        return {}, card
    return (found, card[matched.end() :]) if isinstance(found, dict) else ({}, card)


def with_front_matter(card: str, metadata: Mapping[str, Any]) -> str:
    """Return a card with metadata in its front matter; what else its author wrote there stays, and so do own tags."""
    before, text = read_front_matter(card)
    tags = before.get("tags")
    own = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    merged = {**before, **metadata}
    if "pipeline_tag" in before:
        merged["pipeline_tag"] = before["pipeline_tag"]
    merged["tags"] = list(dict.fromkeys([*own, *metadata.get("tags", ())]))
    return f"---\n{yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)}---\n\n{text}"
