"""`draftsmith plan fit` and `plan student`: which sizes of teacher and student go together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.gap_sweep import run_sweep
from draftsmith.cli.numbers import numbers
from draftsmith.cli.plan_draft import planned_run
from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.prompts import load_prompts
from draftsmith.server.home import Home

if TYPE_CHECKING:
    from draftsmith.distill.sizing.capacity_gap import CapacityGap

_FIT = "capacity-gap.json"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_MAX_TOKENS = 4096


def fit(
    teachers: Annotated[str, typer.Option(help="Layers of the teachers, as 30,16,8,4.")],
    students: Annotated[str, typer.Option(help="Layers of the students, as 1,2,4.")],
    recipe: Annotated[
        str | None, typer.Argument(help="TOML file or built-in recipe of every run.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The largest of the family; else the recipe's.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Else the recipe's data.train.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a field of the recipe; repeatable."),
    ] = None,
    teacher_steps: Annotated[int, typer.Option(min=1, help="To recover a cut teacher.")] = 60,
    student_steps: Annotated[int, typer.Option(min=1, help="Of every student.")] = 60,
    picture: Annotated[Path | None, typer.Option(help="PNG of the sweep.")] = None,
) -> None:
    """Distil several students from several teachers of one family, and fit the law of capacity gap.

    Teachers are cut from the family's largest model by layers and distilled from it; a student
    begins with the same weights under every teacher. All are judged by their cross-entropy on the
    largest model's held-out answers. Runs that were done before are not done again. The fit is kept
    for `plan student`.

    Example:

        draftsmith plan fit demo --teachers 30,16,8,4 --students 1,2 --picture gap.png
    """
    home = Home.default().ensure()
    if picture is not None and not picture.absolute().parent.is_dir():
        raise ValueError(f"--picture {picture}: the folder {picture.parent} does not exist.")
    depths = numbers("--teachers", teachers), numbers("--students", students)
    resolved = planned_run(recipe, teacher, prompts, overrides or [], home)
    from draftsmith.distill.sizing.capacity_gap import fit_gap
    from draftsmith.distill.sizing.gap_picture import plot_gap

    found = fit_gap(run_sweep(resolved, *depths, teacher_steps, student_steps, home))
    found.write(home.plans / _FIT)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_sweep_table(found))
    ratio = found.ratio
    console.print(
        f"best teacher by student {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    )
    console.print(found.verdict)
    if picture is not None:
        plot_gap(found, picture)
        console.print(f"picture  {picture}")


def student(
    teachers: Annotated[
        list[str] | None, typer.Option("--teacher", help="A model; repeatable, to compare.")
    ] = None,
    student_params: Annotated[
        str | None, typer.Option(help="Parameters of the student, as 50M.")
    ] = None,
    prompts: Annotated[
        str, typer.Option(help="Your data: the loss of teachers is measured on its responses.")
    ] = "draftsmith:stdlib/heldout",
    limit: Annotated[int, typer.Option(min=1, help="Prompts to use, from the first.")] = 16,
) -> None:
    """Recommend a size of teacher for a student, or of student for a teacher.

    The ratio is that of the last `plan fit`, or the published one where there is none. What decides
    in the end is how well the teacher knows your data: its loss stands beside it.

    Examples:

        draftsmith plan student --student-params 50M

        draftsmith plan student --teacher smollm2-135m --prompts mine.jsonl
    """
    if not teachers and student_params is None:
        raise ValueError("plan student needs --student-params, --teacher, or both.")
    from draftsmith.distill.sizing.capacity_gap import PUBLISHED_RATIO, CapacityGap

    home = Home.default().ensure()
    size = None if student_params is None else _parameters(student_params)
    stored = home.plans / _FIT
    gap = CapacityGap.read(stored) if stored.is_file() else None
    console = Console(highlight=False, soft_wrap=True)
    ratio = PUBLISHED_RATIO
    if gap is None:
        console.print(
            f"ratio {ratio}, as published (arXiv 2311.07052): `draftsmith plan fit` finds that of "
            "your family."
        )
    elif not gap.shows_gap:
        console.print(f"ratio {ratio}, as published (arXiv 2311.07052). {gap.verdict}")
    else:
        ratio = gap.ratio.value
        console.print(f"ratio {_ratio(gap)}, fitted to {gap.sweep.family}. {gap.verdict}")
    if size is not None:
        console.print(f"a student of {_millions(size)} learns best from {_millions(ratio * size)}")
    if teachers:
        console.print(_teacher_table(teachers, size, ratio, prompts, limit, home))


def _sweep_table(gap: CapacityGap) -> Table:
    sweep = gap.sweep
    table = Table(title=f"Nats a token on held-out answers of {sweep.family}", title_justify="left")
    table.add_column("teacher")
    table.add_column("itself", justify="right")
    for size in sweep.students:
        table.add_column(f"student {_millions(size)}", justify="right")
    for teacher, loss in sorted(sweep.teacher_losses.items()):
        losses = (sweep.losses(size)[teacher] for size in sweep.students)
        table.add_row(_millions(teacher), f"{loss:.3f}", *(f"{one:.4f}" for one in losses))
    table.add_section()
    bests = (
        _millions(gap.best_teachers[size]) + (", edge" if size in gap.at_edge else "")
        for size in sweep.students
    )
    table.add_row("best", "", *bests)
    return table


def _teacher_table(
    names: list[str], student: int | None, ratio: float, prompts: str, limit: int, home: Home
) -> Table:
    from draftsmith.distill.models import load_shape, load_tokenizer, torch_dtype
    from draftsmith.distill.sizing.text_loss import text_nats, user_text
    from draftsmith.distill.student.sizing import size_of

    chosen, dtype = load_prompts(prompts, limit=limit), torch_dtype("auto")
    what = "responses" if any(one.response is not None for one in chosen) else "prompts themselves"
    table = Table(
        title=f"Teachers, and their loss on {len(chosen)} of your {what}", title_justify="left"
    )
    for column in ("teacher", "parameters", "nats a token", "its student"):
        table.add_column(column, justify="left" if column == "teacher" else "right")
    if student is not None:
        table.add_column("by yours", justify="right")
    for name in names:
        folder = resolve_model(name, home)
        text = user_text(chosen, load_tokenizer(folder), _MAX_TOKENS)
        tokens = sum(len(one.response) for one in text)
        size = size_of(load_shape(folder).config, dtype).parameters
        row = [name, _millions(size), f"{sum(text_nats(folder, text, dtype)) / tokens:.3f}"]
        row.append(_millions(size / ratio))
        table.add_row(*row, *([f"{size / student:.2f}"] if student is not None else []))
    return table


def _ratio(gap: CapacityGap) -> str:
    return f"{gap.ratio.value:.2f} ({gap.ratio.low:.2f} to {gap.ratio.high:.2f})"


def _parameters(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"--student-params {text}: give a number such as 50M or 1.3B.")
    return round(float(found[1]) * _UNITS[found[2]])


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f} M"
