"""Sample the student's responses in vLLM: push its weights, then ask for tokens.

The engine is the one that serves; `draftsmith distill` starts it beside the trainer when the
trainer, which knows the student's shape, asks for it. They meet in a folder:

    request.json   from the trainer: which folder to serve, and how
    answer.json    to the trainer: {"socket", "pid"}, or {"error"}
    student/       the student's weights of the last push

Rank 0 pushes, every process samples its share. Between phases the engine is stopped in its tracks:
an idle vLLM polls, and would take its share of the cores from the training steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.export import write_model
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sampling import Sampling

MEETING_VARIABLE = "DRAFTSMITH_ROLLOUT_ENGINE"
"""Environment variable of the trainer: the folder in which it meets the engine's owner."""
REQUEST, ANSWER = "request.json", "answer.json"
_STUDENT = "student"
_MODEL = "student"  # what requests call it
_WEIGHTS_ROUTE = "/draftsmith/weights"
_POLL_S = 0.1


class RolloutEngine:
    """A vLLM server with the student's weights in it; each process of a run has its own object."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype, tokenizer: Path) -> None:
        """Starts nothing: that is left to the first `generate`.

        Args:
            dtype: of the engine's weights and of its computation.
            tokenizer: folder with the tokenizer of student and teacher.

        Raises:
            ValueError: the run was not started by `draftsmith distill`.
        """
        meeting = os.environ.get(MEETING_VARIABLE)
        if meeting is None:
            raise ValueError(
                "rollout.engine = 'vllm' needs an engine beside the trainer: start the run with "
                "`draftsmith distill`, or set rollout.engine = 'hf'."
            )
        self._meeting = Path(meeting)
        self._dtype = dtype
        self._limit = recipe.rollout.batch_size
        self._wanted = {
            "model": str(self._meeting / _STUDENT),
            "name": _MODEL,
            "tokenizer": str(tokenizer),
            "dtype": str(dtype).removeprefix("torch."),
            "max_model_len": recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens,
            "max_num_seqs": recipe.rollout.batch_size,
        }
        self._socket = ""
        self._group = 0

    def generate(
        self,
        student: PreTrainedModel,
        version: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_tokens: Sequence[int],
    ) -> list[list[int]]:
        """Continue each prompt until a stop token, which is kept, with the weights of `student`.

        Every process of the run calls this at the same time, with its own prompts.

        Args:
            version: step that the weights are of; the engine is asked which ones it holds.
            seeds: seed of each sequence.

        Returns:
            The new token ids of each prompt, as the engine drew them, in the order given.

        Raises:
            ValueError: the engine cannot be started, or went away.
        """
        assert len(prompts) == len(seeds), "every prompt needs its own seed"
        if distributed.is_main():
            write_model(student, self._meeting / _STUDENT, self._dtype)
            if not self._socket:
                self._start()
        distributed.barrier()
        if not self._socket:
            self._find()
        with self._running():
            if distributed.is_main():
                self._push(version)
            distributed.barrier()
            responses = asyncio.run(self._sample(version, prompts, seeds, sampling, stop_tokens))
            distributed.barrier()
        return responses

    def _start(self) -> None:
        """Ask for an engine and wait for it; one of an earlier attempt is not answered any more."""
        (self._meeting / ANSWER).unlink(missing_ok=True)
        partial = self._meeting / "request.partial"
        partial.write_text(json.dumps(self._wanted), encoding="utf-8")
        partial.replace(self._meeting / REQUEST)
        while not (self._meeting / ANSWER).is_file():
            time.sleep(_POLL_S)

    def _find(self) -> None:
        answer = json.loads((self._meeting / ANSWER).read_text(encoding="utf-8"))
        if "error" in answer:
            raise ValueError(f"rollout.engine = 'vllm': {answer['error']}")
        self._socket, self._group = answer["socket"], answer["pid"]

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """The engine runs for the length of a `with`, and is paused after it."""
        self._signal(signal.SIGCONT)
        yield
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        if distributed.is_main():
            with contextlib.suppress(ProcessLookupError):  # sampling will say that it is gone
                os.killpg(self._group, number)

    def _push(self, version: int) -> None:
        body = {
            "part": "target",
            "folder": str(self._meeting / _STUDENT),
            "version": str(version),
        }
        transport = httpx.HTTPTransport(uds=self._socket)
        with httpx.Client(transport=transport, base_url="http://engine", timeout=None) as client:
            try:
                answer = client.post(_WEIGHTS_ROUTE, json=body)
            except httpx.TransportError as error:
                raise _gone() from error
        if answer.status_code != 200:
            raise ValueError(f"The rollout engine refused the student: {answer.text[:300]}")

    async def _sample(
        self,
        version: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_tokens: Sequence[int],
    ) -> list[list[int]]:
        places = asyncio.Semaphore(self._limit)
        transport = httpx.AsyncHTTPTransport(uds=self._socket)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://engine", timeout=None
        ) as client:

            async def complete(prompt: Sequence[int], seed: int) -> list[int]:
                body = _request(prompt, seed, sampling, stop_tokens)
                async with places:
                    answer = await client.post("/v1/completions", json=body)
                if answer.status_code != 200:
                    raise ValueError(f"The rollout engine refused a prompt: {answer.text[:300]}")
                tokens: list[int] = answer.json()["choices"][0]["token_ids"]
                return tokens

            try:
                held = (await client.get(_WEIGHTS_ROUTE)).raise_for_status().json()
                assert held == {"target": str(version)}, f"the engine holds version {held}"
                return list(await asyncio.gather(*map(complete, prompts, seeds)))
            except httpx.HTTPError as error:
                raise _gone() from error


def open_rollout_engine(
    recipe: Recipe, dtype: torch.dtype, tokenizer: Path
) -> RolloutEngine | None:
    """None where Hugging Face samples. Raises ValueError where no engine can be had."""
    if recipe.rollout.engine == "hf":
        return None
    return RolloutEngine(recipe, dtype, tokenizer)


def _request(
    prompt: Sequence[int], seed: int, sampling: Sampling, stop_tokens: Sequence[int]
) -> dict[str, Any]:
    """Everything that decides the tokens, none of it left to a default."""
    body: dict[str, Any] = {
        "model": _MODEL,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(stop_tokens),
        "ignore_eos": True,  # the stop tokens say it all
        "add_special_tokens": False,
        "return_token_ids": True,
    }
    return body if sampling.temperature == 0 else body | {"seed": seed}


def _gone() -> ValueError:
    return ValueError("The rollout engine went away: see rollout-engine.log in the run's folder.")
