"""The drafts that a plan compares: `[student]` sections, named by what makes them differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from transformers import PretrainedConfig

from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student import student_config
from draftsmith.distill.student.shape import head_size
from draftsmith.distill.student.sizing import Size, size_of


@dataclass(frozen=True)
class Candidate:
    """A draft that could be trained, and what it would cost to serve."""

    name: str
    section: StudentSection
    size: Size

    @property
    def start(self) -> str:
        return start_of(self.section)


@dataclass(frozen=True)
class Grid:
    """Values that candidates are made of. None stands for the teacher's own.

    starts: ways of `student.init`; `narrow` is `cut` with a hidden_size.
    """

    starts: Sequence[str]
    layers: Sequence[int]
    hidden_sizes: Sequence[int]
    key_value_heads: Sequence[int | None]
    intermediate_sizes: Sequence[int | None]
    vocabularies: Sequence[int | None]


STARTS = ("cut", "narrow", "importance", "random")


def default_grid(teacher: PretrainedConfig) -> Grid:
    """Shallow drafts, as deep as a tenth of the teacher; a third of its width; a sixth of its
    vocabulary or all of it."""
    deepest = max(1, teacher.num_hidden_layers // 7)
    unit = head_size(teacher)
    narrow = max(unit, teacher.hidden_size // 3 // unit * unit)
    fewer = teacher.vocab_size // 6 // 1024 * 1024
    return Grid(
        starts=("cut", "narrow"),
        layers=sorted({1, max(1, deepest // 2), deepest}),
        hidden_sizes=[narrow],
        key_value_heads=[None],
        intermediate_sizes=[None],
        vocabularies=[fewer, None] if fewer else [None],
    )


def candidates(
    teacher: PretrainedConfig, grid: Grid, dtype: torch.dtype, base: StudentSection
) -> list[Candidate]:
    """Every combination of the grid that makes sense, in its order.

    Args:
        dtype: that drafts are served in.
        base: what candidates have in common beside their shape.

    Raises:
        ValueError: the teacher cannot give one of them; names the field.
    """
    found = {}
    shared = base.model_dump(include={"calibration_prompts", "freeze_embeddings"})
    for start, layers, vocabulary in product(grid.starts, grid.layers, grid.vocabularies):
        if start not in STARTS:
            raise ValueError(f"There is no start '{start}': choose among {', '.join(STARTS)}.")
        widths = grid.hidden_sizes if start == "narrow" else [None]
        parts = start in ("importance", "random", "narrow")
        for width, heads, channels in product(
            widths,
            grid.key_value_heads if parts else [None],
            grid.intermediate_sizes if parts else [None],
        ):
            section = StudentSection(
                **shared,
                init="cut" if start == "narrow" else start,
                num_layers=layers,
                hidden_size=width,
                num_key_value_heads=heads,
                intermediate_size=channels,
                vocabulary=vocabulary,
            )
            try:
                one = candidate(teacher, section, dtype)
            except ValueError as error:
                shape = section.model_dump(mode="json", exclude_defaults=True, exclude={"init"})
                where = f"A candidate that starts as '{start}', {shape}"
                raise ValueError(f"{where}: {error}") from error
            found[one.name] = one
    return list(found.values())


def candidate(teacher: PretrainedConfig, section: StudentSection, dtype: torch.dtype) -> Candidate:
    """Raises ValueError where the teacher cannot give this student."""
    config = student_config(teacher, section)
    return Candidate(name_of(section, config), section, size_of(config, dtype, section.vocabulary))


def shapes_of(
    teacher: PretrainedConfig, sections: Sequence[StudentSection], dtype: torch.dtype
) -> list[Candidate]:
    """Drafts of these shapes that may propose all tokens, none twice."""
    whole = (section.model_copy(update={"vocabulary": None}) for section in sections)
    found = [candidate(teacher, section, dtype) for section in whole]
    return list({one.name: one for one in found}.values())


def start_of(section: StudentSection) -> str:
    """How the weights begin: what decides how many tokens a draft needs."""
    return "narrow" if section.init == "cut" and section.hidden_size else section.init


def name_of(section: StudentSection, config: PretrainedConfig) -> str:
    """Such as `cut-3l-v8192`: the way, layers, and whatever else is not the teacher's."""
    parts = [start_of(section), f"{config.num_hidden_layers}l"]
    if section.layers is not None:
        parts[1] = "layers" + ".".join(map(str, section.layers))
    for letter, value in (
        ("h", section.hidden_size),
        ("a", section.num_attention_heads),
        ("g", section.num_key_value_heads),
        ("f", section.intermediate_size),
        ("v", section.vocabulary),
    ):
        if value is not None:
            parts.append(f"{letter}{value}")
    return "-".join(parts)
