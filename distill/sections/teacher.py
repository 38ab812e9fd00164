"""Which model teaches, where its signal comes from, and what is done to it."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from draftsmith.distill.section import DType, Section

SignalFormat = Literal["hidden", "top_k"]
"""How a recorded signal is kept: hidden states and the head, or the likeliest tokens and a tail."""


class RemoteSection(Section):
    """A vLLM server that gives log-probabilities of the text that it is sent."""

    url: str = Field(pattern=r"^(https?|unix)://.+")
    """Base URL without `/v1`, or `unix://` and the path of a socket."""
    model: str | None = None
    """Name that the server knows the teacher by; needed only where it serves several."""
    top_logprobs: int = Field(64, ge=1)
    """Most likely tokens asked for; the server's `--max-logprobs` must allow as many."""
    concurrency: int = Field(8, ge=1)
    """Requests at a time."""
    timeout_s: float = Field(120.0, gt=0)
    """Of one request."""
    attempts: int = Field(6, ge=1)
    """Of a request that meets 429, a 5xx or a broken connection, with growing pauses."""
    api_key_env: str | None = None
    """Environment variable that holds the server's API key."""


class MemberSection(Section):
    """One of several teachers, with the target's vocabulary."""

    model: str
    """As teacher.model; that one may be a member too, and is then loaded once."""
    dtype: DType = "auto"
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Of its distribution in the mixture; only the ratios count."""
    prompts: str = "*"
    """Shell pattern of the ids of the prompts that it teaches, such as `math-*`."""


class ReliableSection(Section):
    """FIRST (arXiv 2408.12168): only the most likely tokens teach; see `kernels.reliable`."""

    mass: float = Field(1.0, gt=0, le=1)
    """Share of the probability that the kept tokens reach."""
    top_k: int | None = Field(None, ge=1)
    """Most tokens that are kept; FIRST keeps 5."""
    temperature: float = Field(1.0, gt=0)
    """Of their recalibration; below 1 sharpens."""
    tail: bool = False
    """Keep the rest as one outcome that the student's other tokens share, instead of giving its
    probability to the kept tokens."""


class PrivacySection(Section):
    """After Swing distillation (arXiv 2212.08349): what may be private is taught vaguely; see
    `kernels.privacy`."""

    patterns: list[str] = Field([r"[\w.+-]+@[\w-]+\.\w+", r"\d(?:[ -]?\d){5,}"], min_length=1)
    """Regular expressions; a token of a response is private where its text overlaps a match. By
    default e-mail addresses, and numbers of six digits and more."""
    temperature: float = Field(4.0, ge=1)
    """Of the teacher at private tokens."""
    noise: float = Field(1.0, ge=0)
    """Standard deviation of the noise on its logits there."""

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
        return patterns


class TeacherSection(Section):
    model: str = "smollm2-135m"
    """A folder, a name in the local store, or a Hugging Face hub id: the model that the student
    is made for, which answers the prompts and which acceptance is measured against."""
    dtype: DType = "auto"
    """`auto` is bfloat16 where the machine multiplies it natively, else float32."""
    keep_states_gib: float = Field(1.0, ge=0)
    """Memory a process may use to keep the teacher's signal of recorded answers."""
    states: str | None = None
    """File that keeps these signals of a live teacher between runs: the first run on a text writes
    it, others read it. What is there of another teacher or text is replaced."""
    stored: str | None = None
    """Folder that `draftsmith teacher record` wrote: answers and signals are read from it."""
    remote: RemoteSection | None = None
    """A server that answers the prompts and gives the signals; `model` is then only read for its
    tokenizer, its shape and its fingerprint."""
    members: tuple[MemberSection, ...] = ()
    """Several teachers, mixed or chosen by prompt; `model` still answers the prompts."""
    reliable: ReliableSection | None = None
    """Keep the reliable part of the signal only."""
    privacy: PrivacySection | None = None
    """Soften the signal where the text may be private."""

    @property
    def keep_bytes(self) -> float:
        return self.keep_states_gib * 2**30

    @property
    def is_live(self) -> bool:
        """Whether `model` itself runs in the training process."""
        return self.stored is None and self.remote is None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.stored is not None and self.remote is not None:
            raise ValueError("give either stored or remote, not both")
        if self.members and not self.is_live:
            raise ValueError("members run in the training process: leave out stored and remote")
        if self.states is not None and not self.is_live:
            raise ValueError("states are those of a live teacher: leave out stored and remote")
        return self
