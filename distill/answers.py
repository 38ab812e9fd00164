"""Recorded teacher answers: written once by the teacher, reused in every pass over the prompts.

They are kept in the run's folder as token ids, so that a resumed run trains on the same text. While
they are written they lie in one file a process, so that a run that is killed loses a few batches.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from draftsmith.distill import distributed
from draftsmith.distill.draws import draw_bits
from draftsmith.distill.progress import track
from draftsmith.distill.sampling import Generate, Sampling

_BATCHES_A_PART = 8
"""Batches that are generated before their answers are written down: a loss of at most so many, and
few ends of a part, at which a batch is not full."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids; `answer` holds a given response's ids where the data has one."""

    id: str
    tokens: tuple[int, ...]
    answer: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """One response to the prompt at `prompt_index`, including its stop token."""

    prompt_index: int
    sample: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answering:
    """How prompts are answered. `batch_size` changes speed, not what is sampled."""

    seed: int
    stop_tokens: Sequence[int]
    batch_size: int


def record_answers(
    path: Path,
    generate: Generate,
    prompts: Sequence[EncodedPrompt],
    samplings: Sequence[Sampling],
    how: Answering,
    label: str,
) -> list[list[Answer]]:
    """Answers of the teacher to each prompt, one for each sampling; read from `path` if there.

    Prompts that carry an answer of their own keep it as their only one.

    Args:
        generate: of the teacher.
    """
    if not path.is_file():
        kept = _read_parts(path)
        distributed.barrier()  # before anyone adds to what others still read
        there = {(answer.prompt_index, answer.sample) for answer in kept}
        wanted = [
            (index, sample)
            for index, prompt in enumerate(prompts)
            for sample in range(len(samplings))
            if prompt.answer is None and (index, sample) not in there
        ]
        mine = wanted[distributed.rank() :: distributed.world_size()]
        written: list[Answer] = []
        with track(label, len(mine)) as bar:
            for part in _parts(mine, how.batch_size):
                answers = _generate(generate, prompts, samplings, part, how, bar.advance)
                _append(_part_file(path, distributed.rank()), answers)
                written += answers
        given = [
            Answer(index, 0, prompt.answer)
            for index, prompt in enumerate(prompts)
            if prompt.answer is not None
        ]
        gathered = distributed.gather_objects(written)
        if distributed.is_main():
            answers = given + kept + [answer for part in gathered for answer in part]
            _write(path, sorted(answers, key=lambda answer: (answer.prompt_index, answer.sample)))
            for file in _part_files(path):
                file.unlink()
        distributed.barrier()
    return read_answers(path, len(prompts))


def _parts(wanted: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """Cut (prompt, sample) pairs into parts, each of one sample number, in order of these."""
    by_sample = sorted(wanted, key=lambda one: one[1])
    for _, alike in itertools.groupby(by_sample, key=lambda one: one[1]):
        chosen = list(alike)
        for start in range(0, len(chosen), _BATCHES_A_PART * batch_size):
            yield chosen[start : start + _BATCHES_A_PART * batch_size]


def _generate(
    generate: Generate,
    prompts: Sequence[EncodedPrompt],
    samplings: Sequence[Sampling],
    part: Sequence[tuple[int, int]],
    how: Answering,
    on_batch: Callable[[int], None],
) -> list[Answer]:
    sample = part[0][1]
    chosen = [index for index, _ in part]
    responses = generate(
        [prompts[index].tokens for index in chosen],
        [draw_bits(how.seed, "answer", prompts[index].id, sample) for index in chosen],
        samplings[sample],
        stop_tokens=how.stop_tokens,
        batch_size=how.batch_size,
        on_batch=on_batch,
    )
    return [
        Answer(index, sample, tuple(response))
        for index, response in zip(chosen, responses, strict=True)
    ]


def _part_file(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.part-{rank}")


def _part_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.part-*"))


def _read_parts(path: Path) -> list[Answer]:
    """What processes of a killed run had written; a line that was cut short does not count."""
    found: dict[tuple[int, int], Answer] = {}
    for file in _part_files(path):
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("}\n"):
                answer = _answer(line)
                found[answer.prompt_index, answer.sample] = answer
    return list(found.values())


def _append(path: Path, answers: list[Answer]) -> None:
    # A line break first: the last line of a killed process may have none.
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n")
        stream.writelines(_line(answer) for answer in answers)
        stream.flush()
        os.fsync(stream.fileno())


def _write(path: Path, answers: list[Answer]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(_line(answer) for answer in answers)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer)) + "\n"


def _answer(line: str) -> Answer:
    record = json.loads(line)
    return Answer(record["prompt_index"], record["sample"], tuple(record["tokens"]))


def read_answers(path: Path, num_prompts: int) -> list[list[Answer]]:
    """The answers to each prompt, as `record_answers` left them in `path`."""
    grouped: list[list[Answer]] = [[] for _ in range(num_prompts)]
    for line in path.read_text(encoding="utf-8").splitlines():
        answer = _answer(line)
        grouped[answer.prompt_index].append(answer)
    assert all(grouped), f"{path} lacks answers: it belongs to other prompts"
    return grouped
