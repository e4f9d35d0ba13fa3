"""Model cards from reports, networks without a simulator, foreign autoencoders, the zoo, and the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from factories import DIFFUSERS_VAES, tokenizer
from hub_server import READER, REVOKED, WRITER, Hub

import vwm
from vwm.cli.main import main
from vwm.cli.published_weights import PUBLISHED_WEIGHTS
from vwm.core.bundle_folder import shipped_bundles
from vwm.core.components import load_component, save_component
from vwm.data import Episode, ShardWriter
from vwm.eval.report_figures import report_figures
from vwm.hub.front_matter import read_front_matter, with_front_matter
from vwm.hub.hub_errors import HubError
from vwm.hub.weight_hash import hash_weights
from vwm.tokenizers import load_tokenizer
from vwm.tokenizers.diffusers_vae import SUPPORTED_DIFFUSERS_VAES
from vwm.tokenizers.rae_tokenizer import RAE_CLASS
from vwm.tokenizers.video_vae.adapter import VIDEO_VAES
from vwm.worlds.families import world_families

NAME = "tester/noise"


@pytest.fixture(scope="module")
def report(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the bundle on recorded noise."""
    folder = tmp_path_factory.mktemp("report")
    generator = np.random.default_rng(0)
    with ShardWriter(folder / "held_out" / "shard-000000.tar") as writer:
        for number in range(2):
            frames = generator.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
            episode = Episode(frames, generator.integers(0, 4, 12), meta={"fps": 10.0, "source": "test"})
            writer.write(f"{number:03d}", episode, raw=True)
    few = {"horizon": 2, "clips": 2, "videos": 0, "drift_seconds": 0, "device": "cpu"}
    vwm.evaluate(bundle, folder / "held_out", folder / "report", **few)
    return folder / "report"


def committed(hub: Hub, name: str, branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[name]
    return repository.commits[repository.branches[branch]]


def test_the_card_shows_the_figures_of_the_report(hub, bundle, report, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    vwm.push(bundle, NAME, report=report, license="cc-by-4.0")
    files = committed(hub, NAME)
    metadata, text = read_front_matter(files["README.md"].decode())
    assert metadata == {
        "library_name": "vwm",
        "pipeline_tag": "image-to-video",
        "tags": ["vwm", "world-model", "genie"],
        "license": "cc-by-4.0",
    }
    published = json.loads(files["report.json"])
    measured = json.loads((report / "report.json").read_text())
    assert published["rollout"] == measured["rollout"]
    for name, value, _ in report_figures(measured):
        assert f"| {name} | {value} |" in text
    assert "2 clips of held_out, " in text
    assert str(report.parent) not in files["report.json"].decode() + text  # no path of this machine
    assert "names no license" not in capsys.readouterr().out
    out = vwm.pull(NAME, out="pulled")
    vwm.push(out, NAME)  # the report in the bundle gives the same card
    assert committed(hub, NAME) == files and len(hub.repositories[NAME].messages) == 2


def test_a_report_of_other_weights_is_refused(hub, bundle, report, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    other = json.loads((report / "report.json").read_text())
    other["provenance"]["bundle_hash"] = "0" * 32
    (tmp_path / "report.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="is the report of other weights"):
        vwm.push(bundle, NAME, report=tmp_path / "report.json")
    with pytest.raises(ValueError, match="there is no report at"):
        vwm.push(bundle, NAME, report=tmp_path / "nothing")
    assert hub.requests == []


def test_what_an_author_wrote_stays_in_the_card(hub, bundle, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    written = Path(shutil.copytree(bundle, "written"))
    front = "---\nlicense: apache-2.0\ntags: [kart, vwm]\nlanguage: en\n---\n\n"
    card = f"{front}# Kart\n\nBy hand | äöü.\n\n    vwm play FOLDER\n"
    (written / "README.md").write_text(card, encoding="utf-8")
    vwm.push(written, NAME)
    metadata, text = read_front_matter(committed(hub, NAME)["README.md"].decode())
    assert metadata["license"] == "apache-2.0" and metadata["language"] == "en"
    assert metadata["tags"] == ["kart", "vwm", "world-model", "genie"]
    assert text == f"# Kart\n\nBy hand | äöü.\n\n    vwm play {NAME}\n"


@pytest.mark.parametrize("card", ["# no front matter\n", "---\nbroken: [\n---\ntext", "---\n- a list\n---\n", "----\n"])
def test_front_matter_that_cannot_be_read_is_text(card):
    assert read_front_matter(card) == ({}, card)
    assert read_front_matter(with_front_matter(card, {"license": "mit"})) == ({"license": "mit", "tags": []}, card)


def test_exported_cards_have_front_matter(lamp_world):
    metadata, text = read_front_matter((lamp_world / "world" / "README.md").read_text())
    assert metadata["library_name"] == "vwm" and metadata["tags"] == ["vwm", "world-model", "dit"]
    assert text.startswith("# ") and "    vwm play FOLDER\n" in text


def test_networks_without_a_simulator_are_pushed_and_loaded_by_name(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    save_component(tokenizer(), tmp_path / "tokenizer")
    vwm.push(tmp_path / "tokenizer", "tester/tokens")
    metadata, _ = read_front_matter(committed(hub, "tester/tokens")["README.md"].decode())
    assert metadata["pipeline_tag"] == "feature-extraction"
    loaded, own = load_tokenizer("tester/tokens"), load_component(tmp_path / "tokenizer")
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(HubError, match=r"is no world: it has no model_index\.json"):
        vwm.load("tester/tokens")


def test_of_a_foreign_pipeline_only_the_autoencoder_is_downloaded(hub, tmp_path):
    vae = diffusers.AutoencoderKL(**DIFFUSERS_VAES["AutoencoderKL"])
    vae.save_pretrained(tmp_path / "vae")
    files = {f"vae/{path.name}": path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    index = {"_class_name": "PainterPipeline", "vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet"]}
    files |= {"model_index.json": json.dumps(index).encode(), "unet/config.json": b"{}", "vae/model.bin": b"pickle"}
    hub.add("org/painter", files)
    loaded = load_tokenizer("org/painter", image_size=(16, 16))
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in loaded.vae.state_dict().items())
    assert hub.read_files() == ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


def test_the_hash_of_weights_is_that_of_the_named_bundle(pushed, bundle):
    assert hash_weights(Path(NAME)) == hash_weights(bundle)
    assert len({hash_weights(Path(name)) for name in shipped_bundles()}) == len(shipped_bundles())


def test_the_zoo_lists_what_is_here(pushed, bundle, report, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    vwm.push(bundle, NAME, report=report, license="mit", revision="v2")
    vwm.load(NAME, revision="v2")
    capsys.readouterr()
    main(["zoo", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["shipped"]] == shipped_bundles()
    for entry in found["shipped"]:
        world = vwm.load(entry["name"], device="cpu")
        stored = [value for network in world.networks().values() for value in network.state_dict().values()]
        assert entry["parameters"] == sum(value.numel() for value in stored)
        assert (entry["title"], entry["fps"]) == (world.spec.title, world.spec.fps)
    [cached] = found["cached"]
    assert cached["name"] == f"{NAME}@v2" and cached["license"] == "mit"
    measured = json.loads((report / "report.json").read_text())
    rows = [(row["measure"], row["value"], row["meaning"]) for row in cached["figures"]]
    assert rows == report_figures(measured)
    main(["zoo"])
    lines = capsys.readouterr().out
    assert f"  {NAME}@v2: noise, GenieSimulator" in lines and "2 clips of held_out" in lines


def test_the_zoo_lists_the_layouts_that_the_loaders_support():
    layouts = [weights.layout for weights in PUBLISHED_WEIGHTS if weights.layout.startswith("Autoencoder")]
    assert sorted(layouts) == sorted({*SUPPORTED_DIFFUSERS_VAES, *VIDEO_VAES, RAE_CLASS})
    assert all(weights.license and weights.parameters for weights in PUBLISHED_WEIGHTS)
    root = Path(__file__).parents[2]
    tools = {weights.loads_with.split()[1] for weights in PUBLISHED_WEIGHTS if weights.loads_with.startswith("python")}
    assert tools and all((root / tool).is_file() for tool in tools)
    worlds = {weights.loads_with.split()[2] for weights in PUBLISHED_WEIGHTS if "import-world" in weights.loads_with}
    assert worlds == {family.name for family in world_families() if family.published_files}


COMMANDS = """
import os
from vwm.cli.main import main

for token, line in {lines!r}:
    os.environ["HF_TOKEN"] = token
    print("$ vwm", line, flush=True)
    try:
        main(line.split())
    except SystemExit as error:
        print("exit", error.code)
"""


def test_the_commands_take_the_settings_of_the_environment(pushed, tmp_path):
    pushed.repositories[NAME].private = True
    lines = [(READER, f"pull {NAME} -o pulled"), (READER, f"bench play {NAME} --steps 2 --device cpu"), (READER, "zoo")]
    lines += [(READER, "play runs/nothing"), (REVOKED, f"push pulled {NAME}"), (REVOKED, f"pull {NAME} -o third")]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_ENDPOINT": pushed.address, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", COMMANDS.format(lines=lines)]
    done = subprocess.run(call, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "output: pulled (" in said and "next: vwm play pulled" in said and f"  {NAME}: noise, GenieSimulator" in said
    assert "runs/nothing is no bundle: there is no such folder" in said
    assert f"On the hub: there is no runs/nothing at {pushed.address}" in said
    assert said.count("does not accept the token") == 2 and said.count("exit 1") == 3
    assert READER not in said and REVOKED not in said and not (tmp_path / "third").exists()


def test_the_speed_of_a_busy_machine_is_no_figure(report):
    measured = json.loads((report / "report.json").read_text())
    names = {}
    for notes in ([], ["the machine was busy with other work: it can be faster than the speed here says"]):
        names[bool(notes)] = [name for name, _, _ in report_figures({**measured, "notes": notes})]
    assert [name for name in names[False] if name not in names[True]] == ["Step", "Frames per second"]
