"""The remote teacher: a vLLM server that scores the text that it is sent.

`prompt_logprobs` has one entry a token of the text: the most likely tokens at its place, given
what stands before it, and the token itself where it is not among them. The first entry is null.
They are log-softmaxes of the logits at temperature 1, whatever the request samples with.

What a server computes depends a little on what else it serves at the time: a run with a remote
teacher resumes exactly only as far as the server repeats itself.

Legend: N response tokens, V vocabulary, K stored tokens a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt, record_answers
from draftsmith.distill.batch import Example
from draftsmith.distill.progress import track
from draftsmith.distill.sampling import Sampling, until_stop
from draftsmith.distill.sections.teacher import RemoteSection
from draftsmith.distill.teacher.client import TeacherClient
from draftsmith.kernels.signal import SparseSignal, distinct_ids

_PROBE = "Tokens: naïve 東京 1234567890, def f(x):\n\treturn x ** 2  # ok?"
_LEAST_TAIL = 1e-8
"""Less is the rounding of float32 log-probabilities."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class _Rows:
    """The signal of one text."""

    ids_NK: Tensor
    log_p_NK: Tensor
    log_tail_N: Tensor


class RemoteTeacher:
    """Args: tokenizer, vocab_size: of the model that the server is expected to serve."""

    def __init__(
        self,
        section: RemoteSection,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        """Ask the server what it serves.

        Raises:
            ValueError: it cannot be reached, serves another model or tokenizer, or does not give
                as many log-probabilities.
        """
        self.device = device
        self._section, self._vocab_size = section, vocab_size
        self._client = TeacherClient(section)
        self._kept: dict[Example, _Rows] = {}
        if section.top_logprobs > vocab_size:
            raise ValueError(
                f"teacher.remote.top_logprobs is {section.top_logprobs}, but the teacher has "
                f"{vocab_size} tokens."
            )
        self._model = self._served_model()
        self._check_tokenizer(tokenizer)
        self._score(Example((0, 0), (0,), "recorded"))

    def answers(
        self,
        path: Path,
        prompts: Sequence[EncodedPrompt],
        samplings: Sequence[Sampling],
        how: Answering,
        label: str,
    ) -> list[list[Answer]]:
        """See `protocol.Teacher`."""
        return record_answers(path, self._generate, prompts, samplings, how, label)

    def keep_signals(self, examples: Sequence[Example], budget_bytes: float) -> bool:
        """Ask for the signals of `examples` now, if they fit into the budget."""
        columns = min(self._section.top_logprobs + 1, self._vocab_size)
        tokens = sum(len(example.response) for example in examples)
        if tokens * (8 * columns + 4) > budget_bytes:
            return False
        with track("teacher signals", len(examples)) as bar:
            for example, rows in zip(examples, self._map(self._score, examples), strict=True):
                self._kept[example] = rows
                bar.advance()
        return True

    def signal(self, examples: Sequence[Example], dtype: torch.dtype | None = None) -> SparseSignal:
        """See `protocol.Teacher`; the server has chosen the dtype of its projection itself."""
        fresh = [example for example in dict.fromkeys(examples) if example not in self._kept]
        scored = dict(zip(fresh, self._map(self._score, fresh), strict=True)) | self._kept
        rows = [scored[example] for example in examples]
        whole = self._section.top_logprobs == self._vocab_size
        log_tail_N = torch.cat([one.log_tail_N for one in rows]).to(self.device)
        return SparseSignal(
            torch.cat([one.ids_NK for one in rows]).to(self.device).long(),
            torch.cat([one.log_p_NK for one in rows]).to(self.device),
            self._vocab_size,
            None if whole else log_tail_N,
        )

    def _served_model(self) -> str:
        served = [str(one["id"]) for one in self._client.get("/v1/models")["data"]]
        wanted = self._section.model
        if wanted is None and len(served) == 1:
            return served[0]
        if wanted in served:
            return str(wanted)
        raise ValueError(
            f"teacher.remote.model: {self._section.url} serves {', '.join(served)}"
            + (f", not '{wanted}'." if wanted else ": name one of them.")
        )

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        body = {"model": self._model, "prompt": _PROBE, "add_special_tokens": False}
        theirs = self._client.post("/tokenize", body)["tokens"]
        if theirs != tokenizer(_PROBE, add_special_tokens=False)["input_ids"]:
            raise ValueError(
                f"teacher.remote: {self._section.url} has another tokenizer than teacher.model: "
                "name the model that it serves."
            )

    def _score(self, example: Example) -> _Rows:
        body = {
            "model": self._model,
            "prompt": [*example.prompt, *example.response],
            "prompt_logprobs": self._section.top_logprobs,
            "max_tokens": 1,  # the server gives no log-probabilities without generating
            "temperature": 0,
        }
        (choice,) = self._client.post("/v1/completions", body)["choices"]
        entries = choice.get("prompt_logprobs")
        if entries is None or len(entries) != example.length:
            raise ValueError(
                f"teacher.remote: {self._section.url} gives no prompt_logprobs: it must be a "
                "vLLM server."
            )
        return self._rows(entries[len(example.prompt) :])

    def _rows(self, entries: Sequence[dict[str, dict[str, Any]]]) -> _Rows:
        columns = min(self._section.top_logprobs + 1, self._vocab_size)
        ids_NK = np.zeros((len(entries), columns), dtype=np.int64)
        log_p_NK = np.full((len(entries), columns), -np.inf)
        for row, entry in enumerate(entries):
            ids_NK[row, : len(entry)] = [int(token) for token in entry]
            log_p_NK[row, : len(entry)] = [one["logprob"] for one in entry.values()]
        mass_N = np.exp(log_p_NK).sum(-1)
        if (mass_N > 1 + 1e-3).any():
            raise ValueError(
                f"teacher.remote: {self._section.url} gives logits instead of log-probabilities: "
                "start it without --logprobs-mode."
            )
        log_p = torch.from_numpy(log_p_NK)
        return _Rows(
            distinct_ids(torch.from_numpy(ids_NK), ~log_p.isneginf()).int(),
            log_p.float(),
            torch.from_numpy(np.log(np.maximum(1 - mass_N, _LEAST_TAIL))).float(),
        )

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        stop_tokens: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None],
    ) -> list[list[int]]:
        """See `sampling.generate`; the server forms its batches itself."""

        def answer(prompt: tuple[Sequence[int], int]) -> list[int]:
            tokens, seed = prompt
            body = {
                "model": self._model,
                "prompt": list(tokens),
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "stop_token_ids": list(stop_tokens),
                "return_token_ids": True,
                # Else the defaults of the model's generation config would apply.
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
            }
            if sampling.temperature > 0:
                body["seed"] = seed
            (choice,) = self._client.post("/v1/completions", body)["choices"]
            return until_stop(choice["token_ids"], set(stop_tokens))

        responses = []
        for response in self._map(answer, zip(prompts, seeds, strict=True)):
            responses.append(response)
            on_batch(1)
        return responses

    def _map(self, ask: Callable[[_In], _Out], things: Iterable[_In]) -> Iterator[_Out]:
        """Answers in the order of the questions, a bounded number of them asked at a time."""
        with ThreadPoolExecutor(self._section.concurrency) as threads:
            yield from threads.map(ask, things)
