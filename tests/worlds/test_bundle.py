"""Contract 5: saved bundles load equally, and only complete bundles of known classes load."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import diffusion_world, dit, dynamics, genie, jepa_world, tdmpc2_world, tokenizer
from latent_worlds import rssm_world
from PIL import Image
from safetensors.torch import load_file, save_file

import vwm
from vwm.core.bundle_folder import BundleError
from vwm.core.spaces import ActionSpace
from vwm.models.dit.simulator import DiTSimulator
from vwm.models.genie.simulator import GenieSimulator
from vwm.worlds.bundle import save_simulator

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "world"
    save_simulator(genie(), folder)
    return folder


@pytest.fixture
def bundle(saved_bundle, tmp_path):
    return shutil.copytree(saved_bundle, tmp_path / "world")


def edit(bundle, change) -> None:
    index = json.loads((bundle / "model_index.json").read_text())
    change(index)
    (bundle / "model_index.json").write_text(json.dumps(index))


def car_world():
    """A world with three continuous actions, rewards and terminations."""
    world = diffusion_world(outcomes=True, action_dims=3)
    world.spec = replace(world.spec, actions=replace(world.spec.actions, rest=(0.0, -1.0, -0.5)))
    return world


WORLDS = {
    "latent": lambda: genie(),
    "labeled": lambda: genie(labeled=True),
    "vq": lambda: genie(codebook=36),
    "genie-outcomes": lambda: genie(labeled=True, outcomes=True),
    "dit": lambda: diffusion_world(),
    "dit-continuous-actions-and-outcomes": car_world,
    "dit-agent": lambda: diffusion_world(agent_tokens=2, policy=True, sink_frames=1, memory_frames=2),
    "rssm": lambda: rssm_world(),
    "rssm-of-vectors": lambda: rssm_world((5,), classes=0, cell="norm_gru"),
    "consistency": lambda: tdmpc2_world((40, 40, 3)),
    "consistency-of-vectors": lambda: tdmpc2_world(),
    "jepa": lambda: jepa_world(),
    "jepa-latents-alone": lambda: jepa_world(decoder=False, action_dims=3),
}


@pytest.mark.parametrize("kind", list(WORLDS))
def test_a_loaded_bundle_steps_as_the_saved_world(kind, tmp_path):
    world = WORLDS[kind]()
    save_simulator(world, tmp_path / "world")
    loaded = vwm.load(tmp_path / "world", device="cpu", dtype=torch.float32)
    assert type(loaded) is type(world) and list(loaded.networks()) == list(world.networks())
    assert torch.equal(loaded.starts, world.starts) and loaded.spec.actions == world.spec.actions
    assert (loaded.sampling, loaded.spec.fps, loaded.spec.title) == (world.sampling, world.spec.fps, world.spec.title)
    state, loaded_state = world.reset(world.starts, seed=3)[0], loaded.reset(loaded.starts, seed=3)[0]
    for i in range(5):
        action = torch.tensor([0, 1, i % 4])
        if world.spec.actions.kind == "continuous":
            action = torch.sin(action[:, None] + torch.arange(world.spec.actions.size))
        state, output = world.step(state, action)
        loaded_state, loaded_output = loaded.step(loaded_state, action)
        for expected, actual in zip(output, loaded_output, strict=True):
            assert (expected is None and world.spec.observation.is_latent) or torch.equal(expected, actual)
    assert not kind.endswith("outcomes") or (output.reward != 0).all()


def test_export_prints_the_next_commands(tmp_path):
    for kind, text in (
        ("latent", "`vwm play ./w`"),
        ("rssm-of-vectors", "shows no images"),
        ("consistency", "shows no images"),
    ):
        save_simulator(WORLDS[kind](), tmp_path / "w")
        assert text in (tmp_path / "w" / "README.md").read_text()


def test_a_cloned_policy_is_saved_and_loaded_with_its_world(tmp_path):
    """A world without a policy loads too, also where the index of an older bundle has no policy entry."""
    world = diffusion_world(agent_tokens=1, policy=True)
    save_simulator(world, tmp_path / "world")
    loaded = vwm.load(tmp_path / "world", "cpu")
    with torch.no_grad():
        logits = [w.policy.policy(w.features(w.reset(world.starts, seed=3)[0])) for w in (world, loaded)]
    assert logits[0].shape == (3, 4) and logits[0].std() > 0 and torch.equal(*logits)
    unconditional = dit(grid=(8, 8), patch_size=2, num_actions=0)
    with pytest.raises(ValueError, match=r"policy\.num_actions=4 but dynamics\.num_actions=0"):
        DiTSimulator(world.tokenizer, unconditional, None, ActionSpace("discrete", 1), world.policy)
    save_simulator(diffusion_world(), tmp_path / "old")
    edit(tmp_path / "old", lambda index: index.pop("policy"))
    assert vwm.load(tmp_path / "old", "cpu").policy is None


def test_float16_export_halves_the_size_and_rounds_the_weights(saved_bundle, tmp_path):
    world = vwm.load(saved_bundle, "cpu")
    save_simulator(world, tmp_path / "half", float16=True)
    loaded = vwm.load(tmp_path / "half", "cpu")
    sizes = [sum(f.stat().st_size for f in p.glob("*/*.safetensors")) for p in (saved_bundle, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]
    for name, part in world.networks().items():
        for a, b in zip(part.parameters(), loaded.networks()[name].parameters(), strict=True):
            assert a.dtype == b.dtype == torch.float32 and torch.equal(a.half().float(), b)


def test_saving_again_replaces_bundles_only(bundle, tmp_path):
    save_simulator(genie(labeled=True), bundle)
    assert vwm.load(bundle, "cpu").latent_action is None and not (bundle / "latent_action").exists()
    foreign = tmp_path / "papers"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is no bundle"):
        save_simulator(genie(), foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_a_bundle_does_not_contain_the_paths_of_its_sources(saved_bundle, tmp_path):
    save_simulator(vwm.load(saved_bundle, "cpu"), tmp_path / "again")
    assert str(saved_bundle.parent) not in "".join(p.read_text() for p in (tmp_path / "again").glob("**/*.json"))


def test_rejects_missing_and_foreign_bundles(bundle, tmp_path):
    with pytest.raises(BundleError, match="vwm export RUN"):
        vwm.load(tmp_path / "nothing")
    edit(bundle, lambda index: index.update(_class_name="StableDiffusionPipeline"))
    with pytest.raises(BundleError, match="StableDiffusionPipeline"):
        vwm.load(bundle)
    (bundle / "model_index.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        vwm.load(bundle)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["os", "system"], "may only name vwm's classes"),
        (["vwm.nn.quantize", "Quantizer"], "which is no network"),
        (["vwm.nowhere", "Anything"], "which vwm does not have"),
        ("tokenizer", r"must be \[module, class\]"),
        ([None, None], "part 'tokenizer' is missing"),
    ],
)
def test_a_bundle_can_only_name_networks_of_this_package(bundle, spec, message):
    edit(bundle, lambda index: index.update(tokenizer=spec))
    with pytest.raises(BundleError, match=message):
        vwm.load(bundle)


def test_loading_unpickles_nothing(bundle):
    class RaisesWhenUnpickled:
        def __reduce__(self):
            return (pytest.fail, ("the bundle ran code",))

    (bundle / "dynamics" / WEIGHTS).unlink()
    (bundle / "dynamics" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(RaisesWhenUnpickled()))
    with pytest.raises(BundleError, match="dynamics: has no weights"):
        vwm.load(bundle)


def test_rejects_missing_unexpected_and_misshapen_weights(bundle):
    file = bundle / "dynamics" / WEIGHTS
    weights = load_file(file)
    for changed, message in (
        ({k: v for k, v in weights.items() if k != "head.bias"}, "head.bias"),
        ({**weights, "stranger": torch.zeros(1)}, "stranger"),
        ({**weights, "head.bias": torch.zeros(7)}, "dynamics: "),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(BundleError, match=message):
            vwm.load(bundle)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BundleError, match="not a safetensors file"):
        vwm.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "fps must be above 0"),
        ({"fps": float("nan")}, "fps must be above 0"),
        ({"fps": float("inf")}, "fps must be above 0 and at most 1000"),
        ({"fps": -5}, "fps must be above 0"),
        ({"context_frames": 0}, "context_frames must be 1 or more"),
        ({"context_frames": 10**9}, "context_frames must be 1 or more and at most"),
        ({"sampling": {"steps": 10**9}}, r"sampling\.steps must lie in 1\.\.1000"),
        ({"sampling": {"temperature": -1}}, r"sampling\.temperature must be a number of 0 or more"),
        ({"sampling": {"temperature": float("nan")}}, r"sampling\.temperature must be a number of 0 or more"),
        ({"sampling": {"temperature": "hot"}}, r"sampling\.temperature must be a number"),
        ({"sampling": [1]}, r"settings\.sampling must be an object, got \[1\]"),
        ({"sampling": {"heat": 1}}, r"settings\.sampling has no heat; it has: steps, "),
        ({"sampling": {"temperature": 1e9}}, "at most 1000, got 1000000000.0"),
        ({"fps": "fast"}, r"settings\.fps must be a number, got fast"),
        ({"context_frames": 2.5}, r"settings\.context_frames must be a whole number, got 2\.5"),
        ({"context_frames": True}, r"settings\.context_frames must be a whole number, got True"),
        ({"title": ["x"]}, r"settings\.title must be a text"),
        ({"title": "x" * 2000}, r"settings\.title has 2000 letters"),
        ({"actions": {"kind": "discrete", "size": 4}}, r"settings\.actions\.names is missing"),
        (
            {"actions": {"kind": "discrete", "size": 4, "names": [["a"]] * 4}},
            r"settings\.actions: names must be a list",
        ),
        ({"actions": {"kind": "discrete", "size": 4, "names": [], "latent": 7}}, "latent must be true or false, got 7"),
        (
            {"actions": {"kind": "discrete", "size": 4, "names": ["a"]}},
            "names must be one for each of 4 actions, got 1",
        ),
        ({"actions": {"kind": "sideways", "size": 4, "names": []}}, "discrete, continuous or composite"),
    ],
)
def test_settings_out_of_range_are_named(bundle, change, message):
    edit(bundle, lambda index: index["settings"].update(change))
    with pytest.raises(BundleError, match=rf"model_index.json: .*{message}"):
        vwm.load(bundle)


def test_weights_of_other_shapes_types_and_values_are_refused_before_they_are_loaded(bundle, monkeypatch):
    file = bundle / "dynamics" / WEIGHTS
    whole = load_file(file)
    for change, message in (
        (whole["head.bias"].to(torch.int64), "weight head.bias is of type I64"),
        (whole["head.bias"].to(torch.complex64), "weight head.bias is of type C64|not a safetensors file"),
        (torch.zeros(7), r"weight head.bias is \[7\], and config.json describes"),
        (whole["head.bias"] * float("nan"), "weight head.bias has values that are not finite"),
    ):
        save_file({**whole, "head.bias": change}, file, metadata={"format": "pt"})
        with pytest.raises(BundleError, match=message):
            vwm.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**7}, "describes"),
        ({"depth": 10**9}, "depth=1000000000"),
        ({"width": -1}, "width must be 0 or more, got -1"),
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"width": None}, "width must not be null"),
        ({"width": "x"}, "width: Expected a int. Got value: x"),
        ({"heads": 0}, "heads must be 1 or more, got 0"),
        ({"window": 0}, "window must be 1 or more, got 0"),
    ],
)
def test_a_config_that_asks_for_other_sizes_allocates_nothing(bundle, change, message):
    """Ten million wide, the network would take hundreds of terabytes."""
    file = bundle / "dynamics" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BundleError, match=rf"dynamics.*{message}"):
        vwm.load(bundle)


@pytest.mark.parametrize("content", ["[" * 10**5, "{" * 10**5, "[]", "1", "null", " " * 2**21])
def test_json_that_is_deep_large_or_no_object_is_an_error(bundle, content):
    for file in (bundle / "dynamics" / "config.json", bundle / "model_index.json"):
        file.write_text(content)
        with pytest.raises(BundleError, match=rf"{file.name}"):
            vwm.load(bundle)


def break_start(kind: str, file: Path) -> None:
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "text":
        file.write_text("no picture")
    elif kind == "jpeg":
        Image.new("RGB", (64, 16)).save(file, "JPEG")
    elif kind == "size":
        Image.new("RGB", (6, 7)).save(file)
    elif kind == "all sizes":
        for other in file.parent.glob("*.png"):
            Image.new("RGB", (8, 4)).save(other)
    elif kind == "loop":
        file.unlink()
        file.symlink_to(file.name)
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(file)
    else:
        file.unlink()
        file.mkdir() if kind == "folder" else file.symlink_to("/etc/hostname")


@pytest.mark.parametrize("kind", ["truncated", "text", "jpeg", "size", "all sizes", "bomb", "folder", "link", "loop"])
def test_starting_pictures_that_are_none_are_named(bundle, kind):
    file = sorted((bundle / "starts").glob("*.png"))[0 if kind == "all sizes" else -1]
    break_start(kind, file)
    with pytest.raises(BundleError, match=rf"{file.name}"):
        vwm.load(bundle)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (torch.zeros(2, 4, 3), r"finite float32 \[5\].*got float32 \[2, 4, 3\]"),
        (torch.zeros(2, 4, 5, dtype=torch.int64), r"got int64 \[2, 4, 5\]"),
        (torch.full((2, 4, 5), torch.nan), "finite"),
        (torch.zeros(0, 4, 5), r"got float32 \[0, 4, 5\]"),
    ],
)
def test_starting_vectors_of_another_world_are_named(tmp_path, starts, message):
    save_simulator(rssm_world((5,), classes=0, cell="norm_gru"), tmp_path / "world")
    folder = tmp_path / "world" / "starts"
    folder.mkdir(exist_ok=True)
    save_file({"starts": starts}, folder / "vectors.safetensors")
    with pytest.raises(BundleError, match=rf"vectors\.safetensors.*{message}"):
        vwm.load(tmp_path / "world")


def test_starts_of_the_other_kind_are_named(bundle):
    save_file({"starts": torch.zeros(2, 4, 5)}, bundle / "starts" / "vectors.safetensors")
    with pytest.raises(BundleError, match=r"vectors\.safetensors: holds vectors, and this world starts from uint8"):
        vwm.load(bundle)


@pytest.mark.parametrize(
    "name", [f"dynamics/{WEIGHTS}", "dynamics/config.json", "dynamics", "starts", "model_index.json"]
)
def test_what_lies_behind_a_link_is_not_opened(bundle, tmp_path, name):
    path = bundle / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=rf"{path.name}: is a link to another folder"):
        vwm.load(bundle)


def test_a_bundle_behind_a_link_is_loaded(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert vwm.load(tmp_path / "link", device="cpu").starts is not None


def test_rejects_settings_that_contradict_the_networks(bundle):
    edit(bundle, lambda index: index["settings"]["actions"].update(size=9, names=[str(i) for i in range(9)]))
    with pytest.raises(BundleError, match=r"9 actions named, but dynamics\.num_actions=4"):
        vwm.load(bundle)


def test_rest_actions_are_saved_and_absent_in_older_bundles(tmp_path):
    actions = ActionSpace("continuous", 3, ("steer", "gas", "brake"), rest=(0.0, -1.0, -1.0))
    folder = tmp_path / "car"
    save_simulator(GenieSimulator(tokenizer(), dynamics(num_actions=3, continuous=True), None, actions), folder)
    assert vwm.load(folder, "cpu").spec.actions == actions
    edit(folder, lambda index: index["settings"]["actions"].pop("rest"))
    assert vwm.load(folder, "cpu").spec.actions.rest == ()
    edit(folder, lambda index: index["settings"]["actions"].update(rest=[0, 0]))
    with pytest.raises(BundleError, match=r"rest must be one number in \[-1, 1\] per dimension"):
        vwm.load(folder, "cpu")
