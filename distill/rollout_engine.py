"""Sample the student's responses in vLLM: push its weights, then ask for tokens.

The engine is the one that serves; `draftsmith distill` starts it beside the trainer when the
trainer asks for it (`meeting.py`). Rank 0 pushes, every process samples its share. Between phases
the engine is stopped in its tracks: an idle vLLM polls, and would take its share of the cores from
the training steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.export import write_model
from draftsmith.distill.meeting import EngineAnswer, EngineRequest, Meeting
from draftsmith.distill.models import torch_dtype
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sampling import Sampling

_MODEL = "target"  # what an engine calls the model that it serves
_WEIGHTS_ROUTE = "/draftsmith/weights"


class RolloutEngine:
    """A vLLM server with the student's weights in it; each process of a run has its own object."""

    def __init__(self, recipe: Recipe) -> None:
        """Starts nothing: that is left to the first `generate`.

        Raises:
            ValueError: the run was not started by `draftsmith distill`.
        """
        meeting = Meeting.from_environment()
        if meeting is None:
            raise ValueError(
                "rollout.engine = 'vllm' needs an engine beside the trainer: start the run with "
                "`draftsmith distill`, or set rollout.engine = 'hf'."
            )
        self._meeting = meeting
        self._dtype = torch_dtype(recipe.train.dtype)
        self._recipe = recipe
        self._engine: EngineAnswer | None = None

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
            write_model(student, self._meeting.student, self._dtype)
            if self._engine is None:
                self._meeting.ask(self._wanted(student))
        if self._engine is None:
            self._engine = self._meeting.wait_for_answer()
            if self._engine.error is not None:
                raise ValueError(f"rollout.engine = 'vllm': {self._engine.error}")
        with self._running(self._engine.group):
            if distributed.is_main():
                self._push(version)
            distributed.barrier()
            responses = asyncio.run(self._sample(version, prompts, seeds, sampling, stop_tokens))
            distributed.barrier()
        return responses

    def _wanted(self, student: PreTrainedModel) -> EngineRequest:
        length = self._recipe.data.max_prompt_tokens + self._recipe.rollout.max_new_tokens
        positions = getattr(student.config, "max_position_embeddings", length)
        return EngineRequest(
            model=str(self._meeting.student),
            tokenizer=self._recipe.teacher.model,  # a folder by now, and the student's too
            dtype=str(self._dtype).removeprefix("torch."),
            max_model_len=min(length, positions),
            max_num_seqs=self._recipe.rollout.batch_size,
        )

    @contextlib.contextmanager
    def _running(self, group: int) -> Iterator[None]:
        """The engine runs for the length of a `with`, and is paused after it."""
        if not distributed.is_main():
            yield
            return
        with contextlib.suppress(ProcessLookupError):  # sampling will say that it is gone
            os.killpg(group, signal.SIGCONT)
        yield
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)

    @property
    def _socket(self) -> str:
        assert self._engine is not None, "the engine was not asked for yet"
        return self._engine.socket

    def _push(self, version: int) -> None:
        folder = str(self._meeting.student)
        body = {"part": "target", "folder": folder, "version": str(version)}
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
        places = asyncio.Semaphore(self._recipe.rollout.batch_size)
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


def open_rollout_engine(recipe: Recipe) -> RolloutEngine | None:
    """None where Hugging Face samples. Raises ValueError where no engine can be had."""
    return RolloutEngine(recipe) if recipe.rollout.engine == "vllm" else None


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
