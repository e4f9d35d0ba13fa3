"""Pages of the documentation that are made from the code when the site is built, so that they cannot go out of date."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
FROM_ROOT = {"model_card.md": "MODEL_CARD.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that are files of the repository's root."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; MkDocs calls it once the written pages are known."""
    pages = {"commands.md": commands_page(), "configs.md": configs_page()}
    pages |= {page: root_page(name) for page, name in FROM_ROOT.items()}
    pages |= {f"api/{package}.md": text for package, text in api_pages().items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Adapt links to files of the repository's root to the site."""
    for page, name in FROM_ROOT.items():
        markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{re.escape(name)}", rf"](\1{page}", markdown)
    return markdown


def root_page(name: str) -> str:
    """Return a file of the root, with links relative to docs/."""
    return (ROOT / name).read_text().replace("](docs/", "](")


def commands_page() -> str:
    """Return the help of every command, by running it."""
    sys.path.insert(0, str(ROOT))
    from vwm.cli.commands import COMMANDS

    lines = ["# Commands\n", "`vwm COMMAND --help` prints the same; `-c` takes a file or a shipped config's name.\n"]
    for name, command in COMMANDS.items():
        lines.append(f"## vwm {name}\n")
        lines.append(f"{command.summary[0].upper()}{command.summary[1:]}.\n")
        lines.append(f"```text\n{_help_of(name)}\n```\n")
    return "\n".join(lines)


def _help_of(command: str) -> str:
    call = [sys.executable, "-m", "vwm.cli.main", *command.split(), "--help"]
    environment = {"COLUMNS": "100", "PATH": ""}  # errors are not captured, so that the build shows them
    return subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout.strip()


def configs_page() -> str:
    """Return a table of the shipped configs, each with the first sentence of its comment."""
    lines = ["# Configs\n", "`vwm fit -c NAME` and `vwm agent train -c NAME` (those of `agents/`) take these names.\n"]
    lines += ["| Config | |", "|---|---|"]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        comment = " ".join(line[1:].strip() for line in _leading_comment(path.read_text()))
        first = re.split(r"(?<=[a-z0-9)])[.:](?:\s|$)", comment)[0]
        lines.append(f"| `{path.relative_to(ROOT / 'configs').with_suffix('')}` | {first.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def api_pages() -> dict[str, str]:
    """Return one page per package: a mkdocstrings block for every module with public names."""
    pages = {"vwm": _top_level_page()}
    for init in sorted((ROOT / "vwm").rglob("__init__.py")):
        package = ".".join(init.parent.relative_to(ROOT / "vwm").parts)
        modules = [p for p in sorted(init.parent.glob("*.py")) if p.name != "__init__.py" and _has_public_names(p)]
        if not package or package in ("models", "cli") or not modules:
            continue
        docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
        blocks = [f"::: vwm.{package}.{module.stem}\n" for module in modules]
        pages[package] = "\n".join([f"# vwm.{package}\n", f"{docstring}\n", *blocks])
    return pages


def _top_level_page() -> str:
    from vwm import read_public_api

    options = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
    lines = ["# vwm\n", "What `import vwm` offers, imported when it is first used; folders are text or paths.\n"]
    for name, target in read_public_api().items():
        lines.append(f"## vwm.{name}\n")
        lines.append(f"::: {target.replace(':', '.')}\n{options}")
    return "\n".join(lines)


def _has_public_names(path: Path) -> bool:
    kinds = ast.ClassDef | ast.FunctionDef
    return any(isinstance(n, kinds) and not n.name.startswith("_") for n in ast.parse(path.read_text()).body)


def _leading_comment(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines
