"""Recording answers: what a killed run had written is kept, and the result is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt, record_answers
from draftsmith.distill.sampling import Sampling

PROMPTS = [EncodedPrompt(f"p-{number}", (number, number + 1)) for number in range(40)]
PROMPTS[7] = EncodedPrompt("p-7", (7, 8), answer=(70, 0))
SAMPLINGS = [Sampling(max_new_tokens=4, temperature=0.0), Sampling(max_new_tokens=4)]
HOW = Answering(seed=3, stop_tokens=[0], batch_size=2)


class Killed(BaseException):
    pass


class Teacher:
    """Answers with its seed and temperature; counts, and dies after `lives` parts."""

    def __init__(self, lives: int = 1000) -> None:
        self.lives = lives
        self.answered = 0

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        stop_tokens: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None],
    ) -> list[list[int]]:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        self.answered += len(prompts)
        on_batch(len(prompts))
        return [
            [prompt[0], seed % 1000, int(10 * sampling.temperature)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


def record(path: Path, teacher: Teacher) -> list[list[Answer]]:
    return record_answers(path, teacher, PROMPTS, SAMPLINGS, HOW, "answers")


def test_a_killed_recording_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = Teacher()
    (tmp_path / "whole").mkdir()
    expected = record(tmp_path / "whole" / "answers.jsonl", whole)
    assert whole.answered == 39 * 2
    path = tmp_path / "answers.jsonl"
    mortal = Teacher(lives=2)
    with pytest.raises(Killed):
        record(path, mortal)
    assert not path.exists()
    (part,) = tmp_path.glob("answers.jsonl.part-*")
    text = part.read_text()
    part.write_text(text[: len(text) - 20])  # killed in the middle of a line
    heir = Teacher()
    assert record(path, heir) == expected
    assert heir.answered == 39 * 2 - (mortal.answered - 1)
    assert path.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert not list(tmp_path.glob("*part*"))


def test_a_line_that_lacks_only_its_end_is_not_kept_twice(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for lives in (1, 1):
        with pytest.raises(Killed):
            record(path, Teacher(lives))
        (part,) = tmp_path.glob("answers.jsonl.part-*")
        part.write_text(part.read_text().rstrip("\n"))
    answers = record(path, Teacher())
    assert [len(one) for one in answers] == [2] * 7 + [1] + [2] * 32


def test_what_is_there_is_read_and_a_given_answer_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = record(path, Teacher())
    assert record(path, Teacher(lives=0)) == first
    assert first[7] == [Answer(7, 0, (70, 0))]
    assert [answer.tokens[2] for answer in first[0]] == [0, 10]
