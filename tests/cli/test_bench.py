"""What `bench` and `profile` refuse, and what they show of figures that are given."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from draftsmith.cli.bench import contenders
from draftsmith.cli.bench_report import ALONE, bench_table, write_results
from draftsmith.cli.profile import conditional, profile_table
from draftsmith.cli.score import mean_scores
from draftsmith.distill.models import load_tokenizer
from draftsmith.server.engine.load import LoadResult
from tests.cli.commands import draftsmith, one_sentence
from tests.server.speculation.test_profile import PROFILE


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_wrong_lists_are_one_sentence(tmp_path: Path) -> None:
    pair = ["--target", "a", "--draft", "b"]
    for arguments, complaint in (
        (["bench", *pair, "--methods", "adaptive,magic"], "'magic' is none of adaptive"),
        (["bench", *pair, "--methods", "eagle3"], "go together"),
        (["bench", *pair, "--head", "x"], "go together"),
        (["bench", *pair, "--score", "math:nothing"], "give MODULE:FUNCTION"),
        (["bench", *pair, "--score", "math:pi"], "is not a function"),
        (["bench", *pair, "--concurrency", "1,0"], "--concurrency 1,0"),
        (["profile", *pair, "--batch-sizes", "1,x"], "--batch-sizes 1,x"),
        (["profile", *pair, "-o", str(tmp_path / "no" / "p.json")], "does not exist"),
    ):
        assert complaint in one_sentence(draftsmith(tmp_path, *arguments))


def test_contenders_differ_in_what_they_are_named_after() -> None:
    target, draft = Path("t"), Path("d")
    every = ["adaptive", "fixed", "greedy", "block", "ngram", "suffix", "eagle3"]
    found = contenders(target, draft, every, 3, 16, profile=None, head=Path("h"))
    assert list(found) == [ALONE, *every]
    assert not found[ALONE].speculates
    assert found["adaptive"].lookahead_control == "adaptive"
    assert found["fixed"].lookahead_control == "fixed"
    assert found["adaptive"].draft == found["fixed"].draft == draft
    assert [found[name].method for name in ("ngram", "suffix")] == ["ngram", "suffix"]
    assert found["ngram"].draft is None
    assert (found["greedy"].draft, found["greedy"].draft_sample_method) == (draft, "greedy")
    assert (found["block"].draft, found["block"].rejection_sample_method) == (draft, "block")
    assert (found["eagle3"].draft, found["eagle3"].method) == (Path("h"), "eagle3")
    assert {one.max_num_seqs for one in found.values()} == {16}


def result(speedup: float, tokens_a_call: float | None) -> LoadResult:
    return LoadResult(
        tokens_per_second=40 * speedup,
        speedup=speedup,
        speedup_range=(speedup - 0.1, speedup + 0.1),
        block_efficiency=tokens_a_call,
        seconds_p50=1.5,
        seconds_p95=2.5,
        answers=[[1, 2]],
    )


def test_table_json_and_picture(tmp_path: Path) -> None:
    results = {
        level: {ALONE: result(1.0, None), "adaptive": result(1.3 - 0.02 * level, 1.8)}
        for level in (1, 8)
    }
    text = shown(bench_table(results, "a target"))
    assert "1.28" in text
    assert "…" not in text, text
    write_results(tmp_path / "bench", results, {"target": "a target"})
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["results"]["8"]["adaptive"]["speedup"] == pytest.approx(1.14)
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_scores_stand_beside_the_speed(tiny_target: Path) -> None:
    """They are of the text up to its end; what ran on for the clock's sake does not count."""
    tokenizer = load_tokenizer(tiny_target)
    long, short = (tokenizer.encode(one) for one in ("abc abc", "abc"))
    end = [tokenizer.eos_token_id]
    row = {
        ALONE: result(1.0, None).model_copy(update={"answers": [long, short + end + long]}),
        "lossy": result(1.3, 1.8).model_copy(update={"answers": [short, end + long]}),
    }
    scores = mean_scores(lambda prompt, answer: len(answer), tiny_target, [long, short], row)
    assert scores == {ALONE: (7 + 3) / 2, "lossy": 3 / 2}
    text = shown(bench_table({1: row, 8: row}, "a target", scores))
    assert [text.count(one) for one in ("5.000", "1.500")] == [1, 1]
    with pytest.raises(ValueError, match="must return a number"):
        mean_scores(lambda prompt, answer: None, tiny_target, [long, short], row)  # type: ignore[arg-type,return-value]


def test_profile_table_says_where_it_pays() -> None:
    text = shown(profile_table(PROFILE))
    one, eight = (line for line in text.splitlines() if line.strip(" │").startswith(("1 ", "8 ")))
    assert "1.57" in one  # 2.2 tokens a call for a step of 1.4
    assert one.split("│")[-4].strip() == "2"
    assert "none" in eight
    assert "…" not in text, text


def test_conditional_chances_from_shares() -> None:
    assert conditional([0.8, 0.4, 0.0, 0.0]) == pytest.approx([0.8, 0.5, 0.0, 0.0])
