"""`draftsmith`: the command line. Errors are one sentence and a non-zero exit."""

from __future__ import annotations

import errno
import os
import shutil
import sys

import typer

from draftsmith.cli.demo import demo
from draftsmith.cli.distill import distill
from draftsmith.cli.doctor import doctor
from draftsmith.cli.evaluate import evaluate
from draftsmith.cli.keys import keys
from draftsmith.cli.models import models
from draftsmith.cli.serve import serve
from draftsmith.cli.student import student

app = typer.Typer(
    name="draftsmith",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distil a draft model from the model you serve, and serve both with vLLM.",
)
app.command()(demo)
app.command()(doctor)
app.add_typer(models, name="models")
app.command()(distill)
app.add_typer(student, name="student")
app.command()(evaluate)
app.command()(serve)
app.add_typer(keys, name="keys")


def main() -> None:
    if shutil.which("nvidia-smi") is None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it guesses
    try:
        app()
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"error: {error.strerror}{where}.")


if __name__ == "__main__":
    main()
