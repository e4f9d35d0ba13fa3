"""Throw mutated files and messages at every reader of vwm; none may crash, hang, fill the memory or run code.

    python tools/fuzz --cases 10000
    python tools/fuzz --cases 500 --only bundle --seed 7
    python tools/fuzz --replay bundle:7:123        # one case in this process, with its traceback

A case is a function of the target, the seed and its number. It is right where the reader accepts the input or refuses
it with a sentence: an error of the kinds that the command line prints without a traceback. Anything else is listed with
what replays it. Cases run in child processes, which are killed after ``--seconds`` without a result.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from targets import TARGETS

from vwm.cli.main import is_out_of_memory, shorten_message

SENTENCES = (ValueError, OSError, ImportError, FloatingPointError)
"""What ``vwm.cli.main`` prints as one line."""
FORBIDDEN_EVENTS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pickle.find_class",
    "webbrowser.open",
}  # fmt: skip
"""Audit events that reading must not raise."""
MAX_RESIDENT_GB = 4.0
CASES_PER_PROCESS = 100


class ForbiddenEventError(BaseException):
    """A reader ran a program, connected or unpickled a class; not an Exception, so that no reader catches it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, help="one kind of input")
    parser.add_argument("--seconds", type=float, default=30.0, help="after which a case counts as hanging")
    parser.add_argument("--replay", help="TARGET:SEED:NUMBER of a case")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.replay:
            name, seed, number = options.replay.split(":")
            TARGETS[name].prepare(Path(folder))
            print(run_case(name, int(seed), int(number), Path(folder), show=True))
            return
        names = [options.only] if options.only else list(TARGETS)
        faults = []
        for name in names:
            faults += fuzz_target(name, options.cases // len(names), options.seed, options.seconds, Path(folder))
    print(f"{len(faults)} faults" + "".join(f"\n  {fault}" for fault in faults))
    sys.exit(bool(faults))


def fuzz_target(name: str, cases: int, seed: int, seconds: float, folder: Path) -> list[str]:
    """Run the cases of one target; return its faults."""
    home = folder / name
    home.mkdir()
    TARGETS[name].prepare(home)
    began, outcomes, faults = time.monotonic(), Counter[str](), []
    number = 0
    while number < cases:
        stop = min(number + CASES_PER_PROCESS, cases)
        for result in run_cases_apart(name, seed, range(number, stop), seconds, home):
            outcomes[result.partition(":")[0]] += 1
            if result.startswith("fault"):
                faults.append(f"{name}:{seed}:{number} {result}")
                print(faults[-1], flush=True)
            number += 1
    listed = ", ".join(f"{count} {kind}" for kind, count in outcomes.most_common())
    print(f"{name:>12}: {cases} cases in {time.monotonic() - began:.0f} s: {listed}", flush=True)
    return faults


def run_cases_apart(name: str, seed: int, numbers: range, seconds: float, home: Path) -> Iterator[str]:
    """Run cases in a child process; a case that ends it or hangs is a fault, and the rest is left to the next child."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_run_cases, args=(name, seed, numbers, home, sender))
    child.start()
    sender.close()
    for _ in numbers:
        try:
            result = receiver.recv() if receiver.poll(seconds) else "fault: hangs"
        except EOFError:
            child.join()
            result = f"fault: ended the process with status {child.exitcode}"
        yield result
        if result.startswith("fault: hangs") or result.startswith("fault: ended"):
            break
    child.kill()
    child.join()
    receiver.close()


def _run_cases(name: str, seed: int, numbers: range, home: Path, sender: Connection) -> None:
    sys.addaudithook(_refuse_event)
    for number in numbers:
        sender.send(run_case(name, seed, number, home))


def _refuse_event(event: str, arguments: tuple[object, ...]) -> None:
    if event in FORBIDDEN_EVENTS:
        raise ForbiddenEventError(f"{event}{arguments}"[:200])


def run_case(name: str, seed: int, number: int, home: Path, show: bool = False) -> str:
    """Run one case; return ``accepted``, ``refused`` or ``fault: ...``."""
    import resource

    rng = np.random.default_rng([seed, number, *name.encode()])
    try:
        TARGETS[name].run(rng, home)
    except SENTENCES as error:
        if show:
            traceback.print_exc()
        text = shorten_message(str(error))  # as the command line does
        if not text or "Traceback" in text or len(text) > 3000:
            return f"fault: {type(error).__name__} with a message of {len(text)} characters: {text[:100]!r}"
        return "refused"
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return "refused"
        return describe_fault(error)
    except BaseException as error:  # noqa: BLE001 (any other error is what this looks for)
        if show:
            traceback.print_exc()
        return describe_fault(error)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if resident > MAX_RESIDENT_GB:
        return f"fault: {resident:.1f} GB of memory"
    return "accepted"


def describe_fault(error: BaseException) -> str:
    """Name an error and where it was raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"fault: {type(error).__name__}: {str(error)[:150]} ({Path(where.filename).name}:{where.lineno})"


if __name__ == "__main__":
    main()
