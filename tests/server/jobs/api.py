"""A gateway without an engine, as a process that a test may kill.

python -m tests.server.jobs.api HOME TARGET
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.server.stub import StubEngine, serving

NAME = "org/tiny"


def main() -> None:
    home, target = Path(sys.argv[1]), Path(sys.argv[2])
    with serving(home, target, StubEngine(None), served_model_name=NAME, worker=False) as url:
        print(url, flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
