"""All objectives on one budget: one student, the same prompts and steps, several seeds.

    python benchmarks/objectives.py --target FOLDER --prompts QUESTIONS.jsonl --output FOLDER

Each run is a training process of its own. The target answers the prompts once; all runs train on
those answers and are measured on the same held-out ones. Runs that are done are not done again, so
that a benchmark can be interrupted, or taken in parts with --only. Seeds change the order of the
prompts, sampling and new weights. The budget is a number of steps; adaspec's reference costs a run
of its own on top. Small models leave the second core half idle: with --at-a-time 2, two runs share
the cores, and both are done sooner than one after the other.

It writes `objectives.json` and `objectives.png`: for each objective the acceptance rates, tokens a
target call (tau) and KL(target || draft) of a held-out token, with their spread over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftsmith.distill.metrics import read_metrics
from draftsmith.distill.sections import EvaluateSection
from draftsmith.server.jobs.trainer import trainer_command, trainer_environment

HELDOUT_PROMPTS = 24
RECIPE = """
[student]
init = "cut"

[rollout]
steps_ahead = 5
batch_size = 64

[train]
steps = 1
save_every = 1000000
micro_batch_size = 8
learning_rate = 1e-3
weight_decay = 0.1
warmup_steps = 5
dtype = "auto"
"""
MEASURES = ("alpha_overlap", "alpha_argmax", "tau", "forward_kl")


@dataclass(frozen=True)
class Variant:
    """One row of the table. `claim` is what the paper says, in its own setting.

    needs_responses: the prompts must come with responses. reference: the row whose draft of the
    same seed chooses the tokens.
    """

    settings: dict[str, Any]
    claim: str = ""
    needs_responses: bool = False
    reference: str | None = None


ON_POLICY = "student text as good as the target's or better; which divergence is best varies"
VARIANTS = {
    "forward_kl": Variant({"objective.divergence": "forward_kl"}, ON_POLICY),
    "forward_kl, recorded text": Variant({"rollout.student_fraction": 0}),
    "reverse_kl": Variant({"objective.divergence": "reverse_kl"}, ON_POLICY),
    "jsd": Variant({"objective.divergence": "jsd"}, ON_POLICY),
    "tvd": Variant({"objective.divergence": "tvd"}, "no consistent gain, though it is the measure"),
    "taid": Variant(
        {"objective.name": "taid"}, "MT-Bench 4.05 against 2.74 (Phi-3-mini to TinyLlama)"
    ),
    "skew_kl": Variant(
        {"objective.name": "skew_kl", "objective.tolerance": 0.0},
        "better than KL and GKD at a fraction of the generation",
    ),
    "skew_reverse_kl": Variant({"objective.name": "skew_reverse_kl", "objective.tolerance": 0.0}),
    "lk": Variant({"objective.name": "lk"}),
    "lk_hybrid": Variant(
        {"objective.name": "lk_hybrid"}, "tau 4.08 against 3.77 with KL (EAGLE-type drafts)"
    ),
    "minima": Variant({"objective.name": "minima"}),
    "adaspec": Variant(
        {"objective.name": "adaspec"},
        "alpha +0.4 to +15 points over DistillSpec",
        reference="forward_kl",
    ),
    "seq_kd": Variant({"objective.name": "seq_kd"}, "far behind objectives that see logits"),
    "sft": Variant({"objective.name": "sft"}, "behind all distillation", needs_responses=True),
    "self_distillation": Variant(
        {"objective.name": "self_distillation", "objective.schedule": "linear"},
        needs_responses=True,
    ),
}


def main() -> None:
    options = parse()
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    wanted = HELDOUT_PROMPTS + options.num_prompts
    if len(lines) < wanted:
        sys.exit(f"error: {options.prompts} has {len(lines)} prompts, and {wanted} are needed.")
    options.output.mkdir(parents=True, exist_ok=True)
    heldout, train = options.output / "heldout.jsonl", options.output / "train.jsonl"
    heldout.write_text("\n".join(lines[:HELDOUT_PROMPTS]) + "\n", encoding="utf-8")
    train.write_text("\n".join(lines[HELDOUT_PROMPTS:wanted]) + "\n", encoding="utf-8")
    chosen = [name for name in VARIANTS if name in (options.only or VARIANTS)]
    if not _all_have_responses(train):
        for name in [name for name in chosen if VARIANTS[name].needs_responses]:
            print(f"{name}: left out, the prompts have no responses", flush=True)
            chosen.remove(name)
    references = [name for name in chosen if VARIANTS[name].reference is None]
    for names in (references, [name for name in chosen if name not in references]):
        distil_all(options, names)
    table = summarise(options)
    content = {
        "budget": {name: getattr(options, name) for name in ("num_prompts", "steps", "batch_size")},
        "student": options.student,
        "target": options.target.name,
        "prompts": options.prompts.name,
        "num_speculative_tokens": EvaluateSection().num_speculative_tokens,
        "objectives": table,
    }
    (options.output / "objectives.json").write_text(json.dumps(content, indent=2) + "\n")
    print_table(table)
    plot(table, options.output / "objectives.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare all objectives on one budget.")
    parser.add_argument("--target", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL; see the README")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--at-a-time", type=int, default=1, help="runs that share the cores")
    parser.add_argument("--num-prompts", type=int, default=192, help="to train on")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=[])
    parser.add_argument(
        "--student",
        nargs="*",
        default=["layers=[0, 1, 29]", "vocabulary=8192"],
        help="fields of the recipe's [student]",
    )
    return parser.parse_args()


def distil_all(options: argparse.Namespace, names: list[str]) -> None:
    """One seed of all before the next: what is interrupted has compared them all."""
    runs = list(itertools.product(range(options.seeds), names))
    with ThreadPoolExecutor(options.at_a_time) as pool:
        done = [pool.submit(distil, options, name, seed) for seed, name in runs]
        try:
            for one in done:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)


def distil(options: argparse.Namespace, name: str, seed: int) -> None:
    """Train one draft, unless that is done."""
    folder = run_folder(options, name, seed)
    if (folder / "curves.png").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = options.output / "answers"
    text = "given" if VARIANTS[name].needs_responses else "teacher"
    answers = {
        shared / f"{text}-train.jsonl": folder / "answers-train.jsonl",
        shared / "heldout.jsonl": folder / "answers-heldout.jsonl",
    }
    for kept, used in answers.items():
        if kept.is_file():
            shutil.copy(kept, used)
    recipe = options.output / "objectives.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    threads = max(1, len(os.sched_getaffinity(0)) // options.at_a_time)
    environment = trainer_environment() | {"OMP_NUM_THREADS": str(threads)}
    command = trainer_command(str(recipe), folder)
    for field, value in settings(options, name, seed).items():
        command += ["--set", f"{field}={value if isinstance(value, str) else json.dumps(value)}"]
    print(f"{name}, seed {seed}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"error: {name}, seed {seed} failed:\n{done.stderr[-3000:]}")
    shared.mkdir(exist_ok=True)
    for kept, used in answers.items():
        if not kept.is_file():
            whole = shutil.copy(used, folder / "kept")
            os.replace(whole, kept)  # another run may look for it now
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "initial")


def settings(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Recipe fields of one run: the budget, then what the variant changes."""
    variant, data = VARIANTS[name], options.output.absolute()
    fields: dict[str, Any] = {
        "seed": seed,
        "teacher.model": str(options.target.absolute()),
        "data.train": str(data / "train.jsonl"),
        "data.heldout": str(data / "heldout.jsonl"),
        "train.steps": options.steps,
        "train.batch_size": options.batch_size,
        "train.eval_every": max(1, options.steps // 6),
        "rollout.max_new_tokens": options.max_new_tokens,
    }
    fields |= {f"student.{one.partition('=')[0]}": one.partition("=")[2] for one in options.student}
    if variant.reference:
        reference = run_folder(options, variant.reference, seed) / "draft"
        fields["objective.reference"] = str(reference.absolute())
    return fields | variant.settings


def run_folder(options: argparse.Namespace, name: str, seed: int) -> Path:
    folder: Path = options.output / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    return folder


def summarise(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry an objective that has runs, best overlap first, after the untrained student."""
    rows: list[dict[str, Any]] = []
    untrained: list[dict[str, float]] = []
    for name, variant in VARIANTS.items():
        runs = list(_runs(options, name))
        if not runs:
            continue
        untrained = untrained or [first for first, _ in runs]  # the same for all, but for seeds
        entry: dict[str, Any] = {"objective": name, "seeds": len(runs)}
        entry |= {one: _spread([last[one] for _, last in runs]) for one in MEASURES}
        entry["claim"] = variant.claim
        rows.append(entry)
    rows.sort(key=lambda row: -float(row["alpha_overlap"]["mean"]))
    start: dict[str, Any] = {"objective": "untrained", "seeds": len(untrained)}
    start |= {one: _spread([first[one] for first in untrained]) for one in MEASURES}
    return [start, *rows]


def _runs(
    options: argparse.Namespace, name: str
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Before and after each finished run."""
    for seed in range(options.seeds):
        folder = run_folder(options, name, seed)
        if not (folder / "curves.png").is_file():
            continue
        records = read_metrics(folder / "metrics.jsonl")
        evaluations = [record for record in records if record["kind"] == "evaluation"]
        yield _measures(evaluations[0]), _measures(evaluations[-1])


def _measures(record: dict[str, Any]) -> dict[str, float]:
    tau = record["block_efficiency"][str(record["num_speculative_tokens"])]
    return {"tau": tau} | {one: record[one] for one in MEASURES if one != "tau"}


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _all_have_responses(prompts: Path) -> bool:
    lines = prompts.read_text(encoding="utf-8").splitlines()
    return all({"response", "answer", "completion", "output"} & set(json.loads(x)) for x in lines)


def print_table(table: list[dict[str, Any]]) -> None:
    print(f"\n{'objective':28}" + "".join(f"{one:>18}" for one in MEASURES))
    for row in table:
        cells = []
        for one in MEASURES:
            sd = "" if row[one]["sd"] is None else f" ±{row[one]['sd']:.3f}"
            cells.append(f"{row[one]['mean']:.3f}{sd}")
        print(f"{row['objective']:28}" + "".join(f"{cell:>18}" for cell in cells))


def plot(table: list[dict[str, Any]], output: Path) -> None:
    """A dot for each run and a stroke for the mean: overlap, tau, divergence side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in table if row["objective"] != "untrained"][::-1]
    titles = {
        "alpha_overlap": "acceptance: sum min(p, q)",
        "tau": "tokens a target call",
        "forward_kl": "KL(target || draft), nats",
    }
    size = (12, 1.2 + 0.35 * len(rows))
    figure, panels = pyplot.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        means = [row[measure]["mean"] for row in rows]
        axes.plot(means, range(len(rows)), "|", color="tab:blue", markersize=14)
        for place, row in enumerate(rows):
            values = row[measure]["values"]
            axes.plot(values, [place] * len(values), "o", color="tab:blue", markersize=4)
        axes.set_title(title)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row["objective"] for row in rows])
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
