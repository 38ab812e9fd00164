"""Which candidates are trained as pilots, with which recipe, and what is read out of their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from draftsmith.distill.folder import RunFolder
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.sizing.candidates import (
    Candidate,
    Grid,
    candidates,
    default_grid,
    start_of,
)
from draftsmith.distill.sizing.pilots import (
    Pilots,
    chosen_for_pilots,
    pilot_lengths,
    pilot_recipe,
    read_pilot,
    setting_of,
)
from draftsmith.distill.sizing.positions import block_efficiency
from tests.distill.sizing.plans import drafts, pilots, recipe

LLAMA = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def grid(**changed: object) -> list[Candidate]:
    values = vars(default_grid(LLAMA)) | changed
    return candidates(LLAMA, Grid(**values), torch.bfloat16, StudentSection())


def test_the_usual_candidates_of_a_30_layer_target() -> None:
    names = [one.name for one in grid()]
    assert names == [
        "cut-1l-v8192", "cut-1l", "cut-2l-v8192", "cut-2l", "cut-4l-v8192", "cut-4l",
        "narrow-1l-h192-v8192", "narrow-1l-h192", "narrow-2l-h192-v8192", "narrow-2l-h192",
        "narrow-4l-h192-v8192", "narrow-4l-h192",
    ]  # fmt: skip


def test_heads_and_channels_make_candidates_of_their_own() -> None:
    made = grid(
        starts=("importance",),
        layers=(4,),
        key_value_heads=(2, None),
        intermediate_sizes=(512,),
        vocabularies=(None,),
    )
    assert [one.name for one in made] == ["importance-4l-g2-f512", "importance-4l-f512"]
    two, three = (one.size for one in made)
    group = 2 * 64 * 576 + 2 * 3 * 64 * 576  # a key and a value head, three queries and outputs
    assert three.layers - two.layers == 4 * group


def test_a_candidate_that_the_teacher_cannot_give_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"student\.num_layers is 31"):
        grid(starts=("cut",), layers=(31,))
    with pytest.raises(ValueError, match=r"'hidden_size': 256.*num_attention_heads \(4\)"):
        grid(starts=("narrow",), hidden_sizes=[192, 256])
    with pytest.raises(ValueError, match="no start 'prune'"):
        grid(starts=("prune",))


def test_pilots_are_the_ends_of_every_kind_first() -> None:
    chosen = [one.name for one in chosen_for_pilots(grid(), 5)]
    assert chosen == [
        "cut-1l-v8192", "cut-4l-v8192", "narrow-1l-h192-v8192", "narrow-4l-h192-v8192",
        "cut-2l-v8192",
    ]  # fmt: skip
    assert len(chosen_for_pilots(grid(), 99)) == 6
    with pytest.raises(ValueError, match="two sizes"):
        chosen_for_pilots(grid(layers=(2,)), 3)


def test_a_pilot_is_the_planned_run_with_fewer_steps(tiny_target: Path) -> None:
    planned, one = recipe(tiny_target), drafts(tiny_target)[0]
    pilot = pilot_recipe(planned, one, 23)
    assert pilot.train.steps == pilot.train.eval_every == 23
    assert pilot.train.warmup_steps <= 4, "the shortest has all of the schedule"
    assert pilot_lengths(60) == [15, 30, 60]
    assert pilot_lengths(2) == [1, 2]
    assert pilot.student == one.section
    assert setting_of(pilot) == setting_of(planned)


def test_tokens_and_chances_are_read_from_the_metrics(tiny_target: Path, tmp_path: Path) -> None:
    one = drafts(tiny_target)[0]
    assert one.section.vocabulary == 100
    tau = block_efficiency([0.5, 0.4, 0.3])
    runs = [RunFolder(tmp_path / name) for name in ("short", "long")]
    for run, steps in zip(runs, (2, 4), strict=True):
        records: list[dict[str, object]] = []
        for step in range(steps + 1):
            seconds = {"rollout": 1.0, "update": 1.0}
            if step:
                taken = {"step": step, "tokens": 10 * step, "seconds": seconds}
                records.append({"kind": "train"} | taken)
            if step in (0, 2, 4):
                found = tau if step == steps else {"1": 1.0}
                records.append({"kind": "evaluation", "step": step, "block_efficiency": found})
        run.root.mkdir()
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        planned = pilot_recipe(recipe(tiny_target), one, steps)
        run.recipe.write_text(planned.model_dump_json())
    pilot = read_pilot(runs, one, {100: 0.7})
    assert [point.tokens for point in pilot.points] == [30, 100]
    assert [point.step for point in pilot.points] == [2, 4], "what each run ended with"
    for point in pilot.points:
        assert point.chances == pytest.approx([0.5, 0.4, 0.3])
    assert pilot.coverage == 0.7
    assert pilot.tokens_a_step == 25
    assert pilot.seconds_a_token == pytest.approx((2 / 20 + 2 / 30) / 2)
    assert start_of(pilot.student) == "cut"


def test_pilots_are_kept_whole(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "plans" / "tiny.pilots.json"
    pilots(tiny_target).write(path)
    assert Pilots.read(path) == pilots(tiny_target)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a file of pilots"):
        Pilots.read(path)


def test_prompts_that_changed_make_another_setting(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    data = recipe(tiny_target).data.model_copy(update={"train": str(path)})
    asked = recipe(tiny_target).model_copy(update={"data": data})
    path.write_text('{"prompt": "one"}\n')
    before = setting_of(asked)
    assert setting_of(asked) == before
    path.write_text('{"prompt": "another"}\n')
    assert setting_of(asked)["prompts"] != before["prompts"]
