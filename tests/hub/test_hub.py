"""Bundles through a hub: pushed, pulled, opened by name; interrupted, damaged, hostile, without rights and offline."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import READER, REVOKED, SIGNATURE, WRITER
from huggingface_hub import constants, file_download

import vwm
from vwm.core.bundle_folder import BundleError
from vwm.hub.hub_errors import HubError, HubUnreachableError
from vwm.hub.hub_name import HubName, parse_hub_name

NAME = "tester/noise"
LARGE_FILE = "dynamics/diffusion_pytorch_model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def log_in(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)


def play(world: object) -> torch.Tensor:
    state, _ = world.reset(world.starts[:1], torch.tensor([3]))
    frames = []
    for action in (0, 1, 3):
        state, shown = world.step(state, torch.tensor([action]))
        frames.append(shown.frames if hasattr(shown, "frames") else shown.observation)
    return torch.stack(frames)


def test_a_pushed_bundle_comes_back_equal_and_plays(hub, bundle, tmp_path, monkeypatch, capsys):
    log_in(monkeypatch, WRITER)
    before = contents(bundle)
    assert vwm.push(bundle, NAME, license="mit") == f"{hub.address}/{NAME}"
    assert contents(bundle) == before
    out = vwm.pull(NAME, out="pulled")
    found = contents(out)
    assert {k: v for k, v in found.items() if k != "README.md"} == {k: v for k, v in before.items() if k != "README.md"}
    card = found["README.md"].decode()
    assert card.startswith("---\nlibrary_name: vwm\n") and "license: mit\n" in card and "- world-model\n" in card
    assert card.endswith(before["README.md"].decode())
    assert torch.equal(play(vwm.load(bundle)), play(vwm.load(out)))
    assert torch.equal(play(vwm.load(bundle)), play(vwm.load(NAME)))  # from the hub's cache, by its name
    commits = len(hub.repositories[NAME].messages)
    vwm.push(out, NAME)
    assert len(hub.repositories[NAME].messages) == commits and "nothing had changed" in capsys.readouterr().out


def test_pickles_and_code_are_neither_pulled_nor_pushed(pushed, bundle, tmp_path, monkeypatch):
    out = vwm.pull(NAME, out="pulled")
    assert contents(out).keys() == contents(bundle).keys()
    assert not [path for path in pushed.read_files() if path.endswith((".bin", ".py"))]
    (out / "weights.bin").write_bytes(b"pickle")
    (out / "evil.py").write_text("1")
    log_in(monkeypatch, WRITER)
    vwm.push(out, "tester/again")
    repository = pushed.repositories["tester/again"]
    assert repository.commits[repository.branches["main"]].keys() == contents(bundle).keys() | {".gitattributes"}


def test_a_connection_that_breaks_once_is_continued_in_the_same_pull(pushed, bundle):
    pushed.cut, pushed.cuts = 4000, 1
    vwm.pull(NAME, out="pulled")
    assert pushed.ranges() == ["bytes=4000-"]
    assert contents(Path("pulled"))[LARGE_FILE] == contents(bundle)[LARGE_FILE]


def test_an_interrupted_pull_leaves_nothing_at_its_place_and_the_next_continues(pushed, bundle, monkeypatch, tmp_path):
    pushed.cut, pushed.cuts = 4000, 1
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: setattr(pushed, "down", True)))
    with pytest.raises(HubError, match="503"):
        vwm.pull(NAME, out="pulled")
    assert not Path("pulled").exists() and not list(tmp_path.glob(".pulled*"))
    parts = list((tmp_path / "cache").rglob("*.part"))
    assert [part.stat().st_size for part in parts] == [4000]
    pushed.down = False
    pushed.requests.clear()
    vwm.pull(NAME, out="pulled")
    assert pushed.ranges() == ["bytes=4000-"]
    assert contents(Path("pulled")) == contents(bundle)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_changed_bundle_replaces_the_earlier_one(pushed, bundle, monkeypatch):
    log_in(monkeypatch, WRITER)
    changed = Path(shutil.copytree(bundle, "changed"))
    (changed / "starts" / "002.png").unlink()
    vwm.push(changed, NAME, message="fewer starts")
    repository = pushed.repositories[NAME]
    files = repository.commits[repository.branches["main"]]
    assert "starts/002.png" not in files and {"starts/001.png", "run.py"} <= files.keys()
    assert repository.messages[-1] == "fewer starts"


def test_revisions_are_branches_tags_and_commits(pushed, bundle, monkeypatch):
    log_in(monkeypatch, WRITER)
    first = pushed.repositories[NAME].branches["main"]
    changed = Path(shutil.copytree(bundle, "changed"))
    index = json.loads((changed / "model_index.json").read_text())
    index["settings"]["title"] = "louder"
    (changed / "model_index.json").write_text(json.dumps(index))
    vwm.push(changed, NAME, revision="try/two")
    titles = [vwm.load(NAME, revision=revision).spec.title for revision in (None, "main", first, "try/two")]
    assert titles == ["noise", "noise", "noise", "louder"]
    assert vwm.load(f"{NAME}@try/two").spec.title == "louder"
    with pytest.raises(BundleError, match="has no revision 'v9'"):
        vwm.load(NAME, revision="v9")
    with pytest.raises(BundleError, match="give one of them"):
        vwm.load(f"{NAME}@main", revision="try/two")
    with pytest.raises(BundleError, match="has no revisions"):
        vwm.load(changed, revision="main")


def test_a_file_with_another_hash_is_refused(pushed, monkeypatch, tmp_path):
    pushed.corrupt = {LARGE_FILE}
    with pytest.raises(HubError, match=f"{LARGE_FILE} of {NAME} .* does not have the hash"):
        vwm.pull(NAME, out="pulled")
    pushed.corrupt = {"dynamics/config.json"}
    with pytest.raises(HubError, match=f"dynamics/config.json of {NAME} .* does not have the hash"):
        vwm.pull(NAME, out="pulled")
    assert not Path("pulled").exists()
    pushed.corrupt = set()
    vwm.pull(NAME, out="pulled")


def test_a_file_that_was_damaged_in_the_cache_is_downloaded_again(pushed, bundle):
    cached = vwm.pull(NAME)
    weights = (cached / LARGE_FILE).resolve()
    weights.write_bytes(weights.read_bytes()[::-1])
    assert contents(vwm.pull(NAME, out="pulled")) == contents(bundle)


def test_missing_files_are_named(pushed, monkeypatch):
    pushed.missing = {"dynamics/config.json"}
    with pytest.raises(HubError, match=r"lists a file that it does not give: dynamics/config.json"):
        vwm.pull(NAME, out="pulled")
    repository = pushed.repositories[NAME]
    files = repository.commits[repository.branches["main"]]
    repository.commit("main", {path: content for path, content in files.items() if path != LARGE_FILE})
    pushed.requests.clear()
    with pytest.raises(HubError, match=r"is incomplete: model_index.json names dynamics"):
        vwm.pull(NAME, out="pulled")
    assert LARGE_FILE not in pushed.read_files() and not Path("pulled").exists()


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\..\\evil.json", "c:evil.json"]
)
def test_hostile_file_names_are_refused_before_anything_is_downloaded(pushed, tmp_path, path):
    pushed.listed = [path]
    with pytest.raises(HubError, match="could lead out of its folder"):
        vwm.pull(NAME, out="pulled")
    assert pushed.read_files() == [] and not (tmp_path / "cache").exists()


def test_foreign_repositories_are_refused_before_their_weights_are_downloaded(pushed):
    index = json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    pushed.add(
        "org/painter", {"model_index.json": index.encode(), "unet/config.json": b"{}", "unet/a.safetensors": b"x"}
    )
    with pytest.raises(HubError, match=r"its model_index\.json describes a StableDiffusionPipeline"):
        vwm.load("org/painter")
    pushed.add("org/text", {"README.md": b"hello", "pytorch_model.bin": b"pickle"})
    with pytest.raises(HubError, match=r"neither model_index\.json nor config\.json; it holds README"):
        vwm.load("org/text")
    assert pushed.read_files() == ["model_index.json"]


def test_what_was_pulled_is_checked_like_a_local_bundle(pushed):
    repository = pushed.repositories[NAME]
    files = dict(repository.commits[repository.branches["main"]])
    config = json.loads(files["dynamics/config.json"])
    files["dynamics/config.json"] = json.dumps(config | {"width": 32}).encode()
    repository.commit("main", files)
    with pytest.raises(BundleError, match=r"dynamics: weight .* describes"):
        vwm.pull(NAME, out="pulled")
    assert not Path("pulled").exists()


@pytest.mark.parametrize("token", [REVOKED, READER, ""])
def test_without_rights_the_message_says_why_and_holds_no_token(pushed, bundle, token, monkeypatch, capfd, caplog):
    log_in(monkeypatch, token) if token else None
    words = {REVOKED: "does not accept the token", READER: "may not write to", "": "log in with hf auth login"}[token]
    with pytest.raises(HubError, match=words) as caught:
        vwm.push(bundle, "tester/new")
    if token == REVOKED:
        with pytest.raises(HubError, match=words):
            vwm.pull(NAME, out="pulled")
    said = capfd.readouterr()
    assert not token or token not in str(caught.value) + said.out + said.err + caplog.text
    assert "tester/new" not in pushed.repositories and not Path("pulled").exists()


def test_tokens_and_signed_addresses_stay_secret(pushed, tmp_path, monkeypatch, capfd, caplog):
    log_in(monkeypatch, READER)
    pushed.repositories[NAME].private = True
    pushed.cut, pushed.cuts = 4000, 1
    vwm.pull(NAME, out="pulled")
    said = capfd.readouterr()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (READER, SIGNATURE):
        assert secret not in said.out + said.err + caplog.text and secret.encode() not in stored
    assert "Trying to resume" in caplog.text  # the break is reported
    sent = [(path, headers.get("authorization")) for _, path, headers in pushed.requests]
    assert {authorization for path, authorization in sent if path.startswith("/cdn/")} == {None}
    assert {authorization for path, authorization in sent if not path.startswith("/cdn/")} == {f"Bearer {READER}"}


def test_private_repositories(hub, bundle, monkeypatch):
    log_in(monkeypatch, WRITER)
    vwm.push(bundle, NAME, private=True)
    assert hub.repositories[NAME].private
    vwm.push(bundle, "tester/open")
    assert not hub.repositories["tester/open"].private
    commits = len(hub.repositories["tester/open"].messages)
    with pytest.raises(HubError, match="can be read by everybody"):
        vwm.push(bundle, "tester/open", private=True)
    assert len(hub.repositories["tester/open"].messages) == commits
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=f"there is no {NAME} at .*, or it is private"):
        vwm.load(NAME)


def test_a_broken_bundle_is_not_pushed(hub, bundle, monkeypatch):
    log_in(monkeypatch, WRITER)
    broken = Path(shutil.copytree(bundle, "broken"))
    (broken / LARGE_FILE).write_bytes((broken / LARGE_FILE).read_bytes()[:-100])
    with pytest.raises(BundleError, match="dynamics"):
        vwm.push(broken, NAME)
    with pytest.raises(BundleError, match="is no bundle"):
        vwm.push(Path("nothing"), NAME)
    assert hub.repositories == {} and hub.requests == []


def test_offline_the_cache_is_used_and_only_as_a_whole(pushed, bundle, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match=r"HF_HUB_OFFLINE is set.*holds no whole copy of tester/noise"):
        vwm.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pushed.cut, pushed.cuts = 0, 100
    with pytest.raises(HubUnreachableError, match="does not answer"):
        vwm.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="no whole copy"):
        vwm.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pushed.cuts = 0
    first = play(vwm.load(NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(pushed.requests)
    assert torch.equal(play(vwm.load(NAME)), first) and len(pushed.requests) == asked
    assert "using the copy of tester/noise in the cache" in capsys.readouterr().err
    assert contents(vwm.pull(NAME, out="pulled")) == contents(bundle)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    assert torch.equal(play(vwm.load(NAME)), first)


def test_a_folder_of_that_name_wins_over_the_hub(pushed, bundle):
    shutil.copytree(bundle, NAME)
    index = json.loads((Path(NAME) / "model_index.json").read_text())
    index["settings"]["title"] = "here"
    (Path(NAME) / "model_index.json").write_text(json.dumps(index))
    assert vwm.load(NAME).spec.title == "here" and pushed.requests == []
    with pytest.raises(BundleError, match=r"there is no such folder.*On the hub: there is no org/nothing"):
        vwm.load("org/nothing")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("a-b/c.d_e@refs/pr/1", HubName("a-b/c.d_e", "refs/pr/1")),
        *(
            (text, None)
            for text in ("name", "a/b/c", "./name", "/a/b", "../b", "a/..", "a--b/c", "a/b.", "", "s3://a", "a/b c")
        ),
    ],
)
def test_names_on_the_hub(text, name):
    assert parse_hub_name(text) == name
    assert parse_hub_name(Path(text)) == name or text == "./name"


@pytest.mark.parametrize("revision", ["../../evil", "/etc", "a..b", "-x", "a b", "x.lock"])
def test_revisions_that_git_does_not_allow(revision):
    with pytest.raises(BundleError, match="is no branch, tag or commit"):
        parse_hub_name("org/name", revision)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "GatedRepo"), "asks its readers to accept its conditions"),
        ((403, ""), "the token may not read"),
        ((500, ""), "the hub answered 500"),
        ((429, ""), "the hub answered 429"),
    ],
)
def test_other_refusals_are_told_in_plain_words(pushed, refusal, message):
    pushed.refusal = refusal
    with pytest.raises(HubError, match=message):
        vwm.pull(NAME, out="pulled")


def test_a_web_page_is_no_hub(pushed):
    pushed.web_page = True
    with pytest.raises(HubError, match="does not answer as a hub does: check HF_ENDPOINT"):
        vwm.pull(NAME, out="pulled")


def test_two_pulls_at_once_download_each_file_once(pushed, bundle):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda out: vwm.pull(NAME, out=out), ("one", "two")))
    assert contents(Path("one")) == contents(Path("two")) == contents(bundle)
    read = [path for method, path, _ in pushed.requests if "/cdn/" in path and method == "GET"]
    assert len(read) == len(set(read)) == 3


def test_a_link_out_of_the_bundle_is_not_pushed(hub, bundle, monkeypatch, tmp_path):
    log_in(monkeypatch, WRITER)
    (tmp_path / "secret.json").write_text("{}")
    linked = Path(shutil.copytree(bundle, "linked"))
    (linked / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BundleError, match=r"more\.json: is a link to another folder"):
        vwm.push(linked, NAME)
    assert hub.requests == []
