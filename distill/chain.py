"""From a recipe with stages to a recipe for each stage. Nothing here imports torch.

Weights are handed on as folders: `stage:NAME` becomes the draft of that stage's run, and from
there a stage is a run like any other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from draftsmith.distill.folder import RunFolder
from draftsmith.distill.sections import StageSection

STAGE = "stage:"
_REFERENCES = (("teacher", "model"), ("student", "model"), ("objective", "reference"))
# A table that names this field starts its section afresh: the others would belong to another kind.
_AFRESH = {"objective": "name", "student": "init"}

Content = dict[str, Any]


def stage_contents(
    base: Content, stages: Sequence[StageSection], folder: RunFolder
) -> dict[str, Content]:
    """What each stage's recipe says, in the order in which they run.

    Args:
        base: the recipe around them, with all its fields.
        folder: of the whole run; stages lie below it.

    Raises:
        ValueError: two stages share a name, or one refers to a stage that cannot give what it
            asks for; names stage and field.
    """
    contents: dict[str, Content] = {}
    for index, stage in enumerate(stages):
        if stage.name in contents:
            raise ValueError(f"stages: two are called '{stage.name}'")
        previous = stages[index - 1].name if index else None
        contents[stage.name] = _merged(base, stage, previous) | {
            "name": f"{base['name']}-{stage.name}",
            "seed": base["seed"] + index,  # or all stages would draw the same numbers
        }
        _check_references(stage.name, contents)
    _set_what_is_handed_on(contents, stages)
    for content in contents.values():
        for section, field, name in _references(content):
            content[section][field] = str(folder.stage(name).draft)
    return contents


def _merged(base: Content, stage: StageSection, previous: str | None) -> Content:
    tables = stage.model_dump(exclude={"name"})
    content = {section: dict(base[section]) | table for section, table in tables.items()}
    if previous is not None:
        content["student"] = {"init": "load", "model": STAGE + previous} | tables["student"]
    for section, field in _AFRESH.items():
        if field in tables[section]:
            content[section] = dict(tables[section])
    # The recipe's own name is for what the last stage makes.
    content["export"] = {**base["export"], "name": None} | tables["export"]
    return content


def _references(content: Content) -> Iterator[tuple[str, str, str]]:
    """(section, field, stage) of each model that an earlier stage makes."""
    for section, field in _REFERENCES:
        model = content[section].get(field)
        if isinstance(model, str) and model.startswith(STAGE):
            yield section, field, model.removeprefix(STAGE)


def _check_references(name: str, contents: dict[str, Content]) -> None:
    earlier = [other for other in contents if other != name]
    for section, field, wanted in _references(contents[name]):
        where = f"stages.{name}.{section}.{field}"
        if wanted not in earlier:
            close = difflib.get_close_matches(wanted, earlier, n=1)
            hint = f"; did you mean '{close[0]}'" if close else ""
            raise ValueError(f"{where}: no stage '{wanted}' comes before it{hint}")
        if section == "teacher" and _is_restricted(wanted, contents):
            raise ValueError(
                f"{where}: stage '{wanted}' may propose only some tokens (student.vocabulary), "
                "and a teacher needs them all"
            )


def _is_restricted(name: str, contents: dict[str, Content]) -> bool:
    if contents[name]["student"].get("vocabulary"):
        return True
    loaded = [one for section, _, one in _references(contents[name]) if section == "student"]
    return any(_is_restricted(one, contents) for one in loaded)


def _set_what_is_handed_on(contents: dict[str, Content], stages: Sequence[StageSection]) -> None:
    """A stage that teaches is a model of its own; one whose weights carry on keeps every bit."""
    given = {stage.name: stage.export for stage in stages}
    for content in contents.values():
        for section, _, name in _references(content):
            export = contents[name]["export"]
            if section == "teacher" and "kind" not in given[name]:
                export["kind"] = "student"
            if section == "student" and "dtype" not in given[name]:
                export["dtype"] = "float32"
