"""`draftsmith plan draft`: which draft will pay, before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from draftsmith.cli.numbers import numbers
from draftsmith.cli.pilots import pilots_file, stored_pilots, train_pilots
from draftsmith.cli.plan_latency import measured_latency
from draftsmith.cli.plan_rank import Rank, rank_candidates
from draftsmith.cli.plan_tables import cost_table, load_table, plan_table, step_table
from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.manifest import target_identity
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.server.home import Home

if TYPE_CHECKING:
    from draftsmith.distill.sizing.plan import Plan

_POOR_FIT = 0.3
"""Relative error of step times."""


def draft(
    recipe: Annotated[
        str | None, typer.Argument(help="TOML file or built-in recipe of the planned run.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder, name in the store or hub id; else the recipe's.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts like your traffic; else the recipe's data.train.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a field of the recipe; repeatable."),
    ] = None,
    num_speculative_tokens: Annotated[
        int, typer.Option("--num-speculative-tokens", "-k", min=1, max=16, help="Longest K.")
    ] = 4,
    batch: Annotated[
        str, typer.Option(help="Requests at a time; the first number decides the ranking.")
    ] = "1,4,16",
    starts: Annotated[
        str, typer.Option(help="Of candidates: cut, narrow, importance, random.")
    ] = "cut,narrow",
    layers: Annotated[str | None, typer.Option(help="Numbers of layers, as 1,2,4.")] = None,
    hidden_sizes: Annotated[str | None, typer.Option(help="Widths of narrow ones.")] = None,
    key_value_heads: Annotated[str | None, typer.Option(help="`all` is the teacher's.")] = None,
    intermediate_sizes: Annotated[str | None, typer.Option(help="`all` is the teacher's.")] = None,
    vocabularies: Annotated[
        str | None, typer.Option(help="Tokens a draft may propose, as 4096,all.")
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(help="Of `draftsmith profile`; repeatable, for drafts of several depths."),
    ] = None,
    pilots: Annotated[int, typer.Option(min=0, help="Candidates to train for a little.")] = 0,
    pilot_steps: Annotated[int, typer.Option(min=5, help="Of a pilot's longest run.")] = 60,
    rank: Annotated[
        Rank, typer.Option(help="Speed by pilots, or an order of shapes without them.")
    ] = Rank.PILOTS,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="TOML file for the winner's recipe.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the plan.")] = None,
) -> None:
    """Rank drafts that could be trained by the speed that they would bring.

    The speed of a candidate follows from what its steps take on this machine, and from its
    acceptance after the recipe's budget. Pilots say how acceptance grows with size and tokens;
    without --pilots those of the last plan of this recipe are used.

    Examples:

        draftsmith plan draft demo --pilots 3 --pilot-steps 60 --output best.toml

        draftsmith plan draft --teacher my-org/my-model --prompts traffic.jsonl --pilots 4

        draftsmith plan draft demo --rank training-free
    """
    home = Home.default().ensure()
    for option, path in (("--output", output), ("--json", json_file)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{option} {path}: the folder {path.parent} does not exist.")
    if rank != Rank.PILOTS and (output or json_file):
        raise ValueError(
            f"--rank {rank} orders shapes and predicts no speed: leave out --output and --json, "
            "since there is no plan to write."
        )
    batches = numbers("--batch", batch)
    resolved = planned_run(recipe, teacher, prompts, overrides or [], home)
    from draftsmith.distill.models import load_shape, quiet_libraries, served_dtype
    from draftsmith.distill.sizing.candidates import Grid, candidates, default_grid
    from draftsmith.distill.sizing.plan import Target, make_plan
    from draftsmith.distill.student.sizing import size_of

    quiet_libraries()
    folder = Path(resolved.teacher.model)
    config, dtype = load_shape(folder).config, served_dtype(resolved.export.dtype)
    usual = default_grid(config)
    grid = Grid(
        starts=[part.strip() for part in starts.split(",")],
        layers=numbers("--layers", layers) if layers else usual.layers,
        hidden_sizes=(
            numbers("--hidden-sizes", hidden_sizes) if hidden_sizes else usual.hidden_sizes
        ),
        key_value_heads=_some("--key-value-heads", key_value_heads) or usual.key_value_heads,
        intermediate_sizes=(
            _some("--intermediate-sizes", intermediate_sizes) or usual.intermediate_sizes
        ),
        vocabularies=_some("--vocabularies", vocabularies) or usual.vocabularies,
    )
    drafts = candidates(config, grid, dtype, resolved.student)
    identity = target_identity(folder)
    fingerprint = identity.weights_fingerprint
    trained = None
    if pilots:
        trained = train_pilots(resolved, fingerprint, drafts, pilots, pilot_steps, home)
    elif rank == Rank.PILOTS or pilots_file(resolved, home).is_file():
        trained = stored_pilots(resolved, fingerprint, home)
    if rank != Rank.PILOTS:
        rank_candidates(resolved, drafts, rank, pilot_steps, trained, dtype, home)
        return
    assert trained is not None, "stored pilots are there, or were refused"
    latency = measured_latency(profile or [], folder, dtype, home)
    found = make_plan(
        resolved,
        Target(identity.name, fingerprint, size_of(config, dtype)),
        drafts,
        trained,
        latency,
        batches,
        range(1, num_speculative_tokens + 1),
    )
    found.write(home.plans / f"{found.recipe['name']}.json")
    if json_file is not None:
        found.write(json_file)
    if output is not None:
        _write_recipe(found, output)
    _show(found, output)


def planned_run(
    source: str | None,
    teacher: str | None,
    prompts: str | None,
    overrides: Sequence[str],
    home: Home,
) -> Recipe:
    """The run that is planned, with folders in place of models' names.

    Raises:
        ValueError: neither a recipe nor a teacher was given, or the recipe has stages, or a
            teacher that is not a model of this machine alone.
    """
    if source is None and teacher is None:
        raise ValueError("A plan needs a recipe, or --teacher.")
    given = [*overrides, *([f"teacher.model={teacher}"] if teacher else [])]
    given += [f"data.train={prompts}"] if prompts else []
    parsed = load_recipe(source or "demo", given)
    if parsed.stages:
        raise ValueError("A plan takes a recipe without stages: plan one stage at a time.")
    if parsed.teacher.members or not parsed.teacher.is_live:
        raise ValueError(
            "A plan takes a recipe whose teacher is one live model: leave out teacher.stored, "
            "remote and members."
        )
    if parsed.student.init == "load":
        # A loaded draft has its shape; what is planned is a new one.
        parsed = load_recipe(source or "demo", [*given, 'student={"init" = "cut"}'])
    if parsed.teacher.states is None:
        # Pilots and the planned run share texts, and so what the teacher makes of them.
        states = home.plans / f"{parsed.name}.states.safetensors"
        section = parsed.teacher.model_copy(update={"states": str(states)})
        parsed = parsed.model_copy(update={"teacher": section})
    return parsed.with_models(lambda name: str(resolve_model(name, home)))


def _write_recipe(found: Plan, output: Path) -> None:
    from draftsmith.distill.sizing.recipe_text import recipe_toml

    row, load = found.winner, found.winner.loads[0]
    comment = (
        f"{row.name}, by `draftsmith plan draft`: predicted to answer {load.speedup.value:.2f} "
        f"times as fast as\n{found.teacher} alone at {load.batch} at a time with K = "
        f"{load.best_lookahead}. `draftsmith plan check` compares."
    )
    output.write_text(recipe_toml(Recipe.model_validate(found.recipe), comment), encoding="utf-8")


def _show(found: Plan, output: Path | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for table_of in (plan_table, cost_table, load_table, step_table):
        console.print(table_of(found))
    latency, law = found.latency, found.law
    console.print(f"latency  {latency.source}")
    if latency.relative_error is not None:
        console.print(f"         relative error of the fit {latency.relative_error:.1%}")
        if latency.relative_error > _POOR_FIT:
            console.print(
                "         the speeds are no guide: this machine is busy, or the profile is of "
                "another; plan again when nothing else runs"
            )
    console.print(
        f"law      {law.points} points of pilots, residual {law.residual:.3f}; "
        f"{found.tokens:,} tokens are {found.tokens_beyond_pilots:.1f} times the longest pilot's"
    )
    if law.undecided:
        console.print(
            f"         the points do not decide the effect of {' and '.join(law.undecided)}: train "
            "more pilots, or longer ones"
        )
    if found.unpredicted:
        console.print(f"no pilot starts like {', '.join(found.unpredicted)}: left out")
    if not found.pays:
        console.print("No candidate is predicted to be faster than the target alone.")
    if output is not None:
        console.print(f"recipe   {output}")


def _some(option: str, text: str | None) -> list[int | None]:
    """Numbers, `all` for None; empty where the option was left out."""
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    return [None if part == "all" else numbers(option, part)[0] for part in parts]
