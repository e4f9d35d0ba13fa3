"""A process of ``tools/sharded_memory``: ``vwm fit``, whose memory counts from here."""

from __future__ import annotations

import sys

from allocations import MeasureSteps

from vwm.cli.main import main

if __name__ == "__main__":
    import vwm.models.dit.module
    import vwm.train.fit  # noqa: F401 (what it imports does not count)

    MeasureSteps.start()
    main(sys.argv[1:])
