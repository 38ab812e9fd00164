"""Whatever ends a run becomes one sentence on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from draftsmith.distill import distributed
from draftsmith.distill.exits import Diverged, Exit, Interrupted

_INTACT = "the last checkpoint is intact"


def ending(run: Callable[[], None], output: Path) -> Exit:
    """Do `run` and say how it ended; faults of the program are raised as they are.

    Args:
        output: the run's folder, for sentences that name it.
    """
    try:
        run()
    except Interrupted as interrupted:
        if distributed.is_main():
            _say(str(interrupted))
        return Exit.DONE if interrupted.saved else Exit.INTERRUPTED
    except Diverged as error:
        if distributed.is_main():
            _say(
                f"error: {error}; checkpoints from before are intact. Start a new run, with a "
                "lower train.learning_rate for instance."
            )
        return Exit.DIVERGED
    except ValueError as error:
        _say(f"error: {error}")
        return Exit.WRONG_INPUT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(f"error: No space left on the disk of {output}: {_INTACT}, free some and --resume.")
        return Exit.DISK_FULL
    except RuntimeError as error:
        if not distributed.lost_process(error):
            raise
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # else the launcher knows who was lost
            _say(f"error: Another process was lost; {_INTACT}, --resume goes on from it.")
        return Exit.LOST_PROCESS
    return Exit.DONE


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
