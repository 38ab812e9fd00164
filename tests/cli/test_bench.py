"""What `bench` and `profile` refuse, and what they show of figures that are given."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from draftsmith.cli.bench import ALONE, bench_table, contenders, write_results
from draftsmith.cli.profile import conditional, profile_table
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
        (["bench", *pair, "--concurrency", "1,0"], "--concurrency 1,0"),
        (["profile", *pair, "--batch-sizes", "1,x"], "--batch-sizes 1,x"),
        (["profile", *pair, "-o", str(tmp_path / "no" / "p.json")], "does not exist"),
    ):
        assert complaint in one_sentence(draftsmith(tmp_path, *arguments))


def test_contenders_differ_in_what_they_are_named_after() -> None:
    target, draft = Path("t"), Path("d")
    every = ["adaptive", "fixed", "ngram", "suffix"]
    found = contenders(target, draft, every, 3, 16, profile=None)
    assert list(found) == [ALONE, *every]
    assert not found[ALONE].speculates
    assert found["adaptive"].lookahead_control == "adaptive"
    assert found["fixed"].lookahead_control == "fixed"
    assert found["adaptive"].draft == found["fixed"].draft == draft
    assert [found[name].method for name in ("ngram", "suffix")] == ["ngram", "suffix"]
    assert found["ngram"].draft is None
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


def test_profile_table_says_where_it_pays() -> None:
    text = shown(profile_table(PROFILE))
    one, eight = (line for line in text.splitlines() if line.strip(" │").startswith(("1 ", "8 ")))
    assert "1.57" in one  # 2.2 tokens a call for a step of 1.4
    assert one.split("│")[-4].strip() == "2"
    assert "none" in eight
    assert "…" not in text, text


def test_conditional_chances_from_shares() -> None:
    assert conditional([0.8, 0.4, 0.0, 0.0]) == pytest.approx([0.8, 0.5, 0.0, 0.0])
