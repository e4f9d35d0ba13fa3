"""Send a synthetic corpus through ``vwm ingest``, undisturbed and killed, and check that nothing is lost or repeated.

    python tools/corpus FOLDER --files 5000
    python tools/corpus FOLDER --files 1000 --ray-nodes 3

It makes the corpus, ingests it with local processes, with Ray, and with Ray while two workers and the command itself
are killed; with --ray-nodes N, also on a cluster of N nodes, one of which fails. All must give equal bytes. Every file
must be accounted for as its kind demands, and no two clips may be near duplicates. The last lines are the figures.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from disturbed import run_ingest, run_with_kills
from ray_nodes import run_with_lost_node
from synthetic import make_corpus

SETTINGS = ["--size", "64", "--shots", "detect", "--remove", "black,frozen,duplicates", "--measure", "motion"]
OUTCOMES = {
    "moving": {"kept"}, "two shots": {"kept"}, "three shots": {"kept"}, "text": {"kept"},
    "frozen": {"frozen"}, "black": {"black"},
    "smaller copy": {"duplicates", "kept"}, "worse copy": {"duplicates", "kept"}, "same file": {"duplicates"},
    "broken header": {"skipped"}, "cut off": {"skipped", "kept", "duplicates"}, "empty": {"skipped"},
}  # fmt: skip
"""What may become of the clips of a file: copies may differ too much to be found, cut off files may show something."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--videos-per-shard", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes of each run")
    parser.add_argument("--undisturbed", default="local,ray", help="engines of the undisturbed runs")
    parser.add_argument("--ray-nodes", type=int, default=0, help="also on a Ray cluster of so many nodes")
    options = parser.parse_args()
    source, shards = options.folder / "videos", -(-options.files // options.videos_per_shard)
    kinds = (
        make_corpus(source, options.files) if not source.exists() else json.loads((source / "kinds.json").read_text())
    )
    common = ["--videos-per-shard", str(options.videos_per_shard), "--workers", str(options.workers), *SETTINGS]
    seconds = {}
    for engine in options.undisturbed.split(","):
        out = options.folder / engine
        seconds[engine] = run_ingest(
            [str(source), str(out), "--engine", engine, *common], options.folder / f"{engine}.log"
        )
        print(f"{engine}: {seconds[engine]:.0f} s, {options.files / seconds[engine]:.1f} files/s", flush=True)
    began = time.monotonic()
    kills = [(shards // 5, "worker"), (2 * shards // 5, "driver"), (3 * shards // 5, "worker")]
    out = options.folder / "killed"
    killed = run_with_kills(
        [str(source), str(out), "--engine", "ray", *common], out, options.folder / "killed.log", kills
    )
    print(f"killed: {', '.join(killed)}; {time.monotonic() - began:.0f} s")
    others = [*options.undisturbed.split(",")[1:], "killed"]
    if options.ray_nodes:
        others.append("nodes")
        began, arguments = time.monotonic(), [str(source), str(options.folder / "nodes"), "--engine", "ray", *common]
        kills = (shards // 4, shards // 2)
        happened = run_with_lost_node(
            arguments, options.folder / "nodes", options.folder / "nodes.log", options.ray_nodes, kills
        )
        print(f"cluster of {options.ray_nodes} nodes: {happened}; {time.monotonic() - began:.0f} s")
    problems = [
        f"{name} differs"
        for other in others
        for name in differences(options.folder / options.undisturbed.split(",")[0], options.folder / other)
    ]
    problems += check_outcomes(options.folder / "killed", kinds)
    print("\n".join(problems) or "equal bytes, every file accounted for, no duplicate clip")
    return bool(problems)


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that are not in both folders with the same bytes."""
    names = sorted({p.relative_to(f).as_posix() for f in (one, other) for p in f.rglob("*") if p.is_file()})
    return filecmp.cmpfiles(one, other, names, shallow=False)[1] + filecmp.cmpfiles(one, other, names, shallow=False)[2]


def check_outcomes(out: Path, kinds: dict[str, str]) -> list[str]:
    """Compare what became of every file with its kind; print the counts."""
    manifest = json.loads((out / "ingest.json").read_text())
    outcomes: dict[str, set[str]] = {path: set() for path in kinds}
    hashes: list[str] = []
    for shard in manifest["shards"]:
        for path in shard["skipped"]:
            outcomes[path].add("skipped")
        for clip in json.loads((out / "clips" / shard["name"].replace(".tar", ".json")).read_text())["clips"]:
            outcome = clip["removed_by"] or ("duplicates" if clip["key"] in shard["duplicates"] else "kept")
            outcomes[clip["source"]].add(outcome)
            hashes += [clip["hash"]] if outcome == "kept" else []
    counts = Counter((kinds[path], outcome) for path, found in outcomes.items() for outcome in found)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"  {kind}: {count} {outcome}")
    problems = [
        f"{path} ({kinds[path]}): {found or 'no outcome'}"
        for path, found in outcomes.items()
        if not found or not found <= OUTCOMES[kinds[path]]
    ]
    closest = closest_pair(hashes)
    print(f"  closest kept clips differ in {closest} of 256 bits")
    return problems + ([f"two kept clips differ in {closest} bits only"] if closest <= 16 else [])


def closest_pair(hashes: list[str]) -> int:
    """Smallest number of differing bits between any two hashes, by comparing all."""
    bits = np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(h), np.uint8)) for h in hashes]).astype(np.float32)
    smallest = bits.shape[1]
    for index in range(1, len(bits)):
        same = bits[:index] @ bits[index] + (1 - bits[:index]) @ (1 - bits[index])
        smallest = min(smallest, int(bits.shape[1] - same.max()))
    return smallest


if __name__ == "__main__":
    sys.exit(main())
