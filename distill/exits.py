"""How a training run ends, as exit codes that a supervisor of jobs can go by.

    0  done, or stopped by SIGTERM or SIGINT with everything saved (`draft/` tells which)
    1  a fault of the program: the traceback is on stderr
    2  the recipe, the data or a model is wrong: the same again would end the same way
    3  the loss or the gradient is no longer a number: resuming would repeat it
    4  the disk is full: resume when there is space
    5  a process or host was lost, or killed: resume
    6  stopped by a second signal, before the step that ran was saved: resume

Whatever the end, the newest complete checkpoint is intact, and one sentence on stderr says what
happened. Nothing here imports torch.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    FAULT = 1
    WRONG_INPUT = 2
    DIVERGED = 3
    DISK_FULL = 4
    LOST_PROCESS = 5
    INTERRUPTED = 6

    @property
    def worth_resuming(self) -> bool:
        """Whether the same command with --resume may get further, with nothing changed."""
        return self in (Exit.DISK_FULL, Exit.LOST_PROCESS, Exit.INTERRUPTED)


class Diverged(ArithmeticError):
    """A loss, a gradient or a measurement is infinite or not a number."""


class Interrupted(BaseException):
    """A signal ended the run. Not an Exception: nobody but `main` may catch it.

    saved: whether nothing was lost but what can be done again at once.
    """

    def __init__(self, sentence: str, *, saved: bool) -> None:
        super().__init__(sentence)
        self.saved = saved
