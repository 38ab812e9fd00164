"""The settings of the server: environment variables `DRAFTSMITH_*`, overridden by flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from draftsmith.server.engine.command import (
    DRAFTLESS_METHODS,
    EngineConfig,
    SpeculationMethod,
    speculates,
    uses_cpu_wheel,
)
from draftsmith.server.engine.tool_calls import tool_call_parser_for
from draftsmith.server.home import Home
from draftsmith.server.pair import advised_lookahead
from draftsmith.server.speculation.profile import check_profile, read_profile
from draftsmith.server.telemetry import traces_endpoint

_HALF_A_GPU = 0.45
"""Share of a GPU's memory that each of two engines gets by default; vLLM alone takes 0.9."""


class ServerSettings(BaseSettings):
    """What holds for the whole server, whichever models it serves."""

    model_config = SettingsConfigDict(env_prefix="DRAFTSMITH_", extra="forbid", frozen=True)

    home: Path = Field(default_factory=lambda: Home.default().root)
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000

    traffic: Literal["off", "asked", "all"] = "off"
    """Answers to keep for the next distillation: none; those whose request says `store: true`; or
    all but those that say `store: false`."""
    traffic_max_bytes: Annotated[int, Field(ge=1 << 16)] = 1 << 30
    traffic_max_age_days: Annotated[int, Field(ge=1)] = 30
    traffic_redaction: str | None = None
    """`module:function` that gets each record as a dict, and returns what may be kept of it."""

    log_format: Literal["text", "json"] = "text"
    """`json`: an object a line on standard error, and one for each request."""
    log_prompts: bool = False
    """Whether a request's line in the JSON log holds its prompt."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 << 20
    max_in_flight: Annotated[int, Field(ge=1)] = 256
    """Requests inside the engine at a time; more wait."""
    max_queued: Annotated[int, Field(ge=0)] = 512
    """Requests that wait for a place; one more is answered 503 with Retry-After."""
    max_queue_s: Annotated[float, Field(gt=0)] = 60.0
    max_batch_in_flight: Annotated[int, Field(ge=1)] = 16
    """A line of a batch enters only while fewer requests than this are inside, of whatever kind."""
    max_unfinished_batches: Annotated[int, Field(ge=0)] = 100
    """Of one key; one more is answered 429."""
    max_file_bytes: Annotated[int, Field(ge=1024)] = 512 << 20
    """Of one upload to /v1/files."""
    database_url: SecretStr | None = None
    """postgresql://user:password@host/name for files and jobs; None: SQLite under home."""
    worker: bool = True
    """Run the worker that trains jobs beside the server."""
    max_unfinished_jobs: Annotated[int, Field(ge=0)] = 1000
    """Of one key; one more is answered 429."""
    max_job_steps: Annotated[int, Field(ge=1)] = 100_000
    max_job_runtime_s: Annotated[int, Field(ge=1)] = 7 * 24 * 3600
    api_key: SecretStr | None = None
    """A key that may do everything. When it is set, or `draftsmith keys` has made a key, every
    route but /health and /ready asks for `Authorization: Bearer <key>`."""

    @model_validator(mode="after")
    def _key_is_usable(self) -> ServerSettings:
        if self.api_key is not None and len(self.api_key.get_secret_value()) < 16:
            raise ValueError("use at least 16 characters for api_key")
        return self


class Settings(ServerSettings):
    """A server and one model. Checked once, when the server starts. Build with `load_settings`."""

    target: Path
    """Folder of the model that decides every token."""
    draft: Path | None = None
    """Folder of the model that proposes tokens; none: plain decoding."""
    served_model_name: Annotated[str, Field(min_length=1, max_length=200)] = ""
    """The `model` that clients ask for; default: the name of the target's folder."""

    speculation_method: SpeculationMethod = "draft_model"
    """How tokens are proposed: by the draft, or by vLLM's own `ngram`, `suffix` or `eagle3` (whose
    head is given as the draft)."""
    rejection_sample_method: Literal["standard", "block"] = "standard"
    """`block` verifies whole blocks and accepts more (arXiv 2403.10444); GPU only in vLLM."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=32)] = 3
    """K; default: the lookahead that the draft's recipe was measured with, else 3."""
    draft_sample_method: Literal["greedy", "probabilistic"] = "probabilistic"
    lookahead_control: Literal["adaptive", "fixed"] = "adaptive"
    """`adaptive` drafts 0 to K tokens a step, as measured goodput says; `fixed` always K, as do
    `ngram` and `suffix`, which propose as many as they find and cost next to nothing."""
    profile: Path | None = None
    """File of `draftsmith profile` with which the adaptive choice begins, instead of trying."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the target's own, but float32 on a CPU that does not multiply bfloat16."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    kv_cache_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    enforce_eager: bool | None = None
    """None: eager on a CPU, where compiling costs minutes; compiled on a GPU."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Devices that share the layers' matrices, the layers, and the requests; see vLLM."""
    devices: Annotated[str, Field(pattern=r"^\d+(,\d+)*$")] | None = None
    """GPUs of the engine such as `0,1`; None: all that are visible."""
    lenience: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1 drafts are accepted that the target alone would not have drawn so often: faster, and
    no longer what the target says. See docs/speculation.md."""
    tool_call_parser: str | None = None
    """vLLM's name of the form of tool calls; None: as the target's chat template shows, if any."""
    plain_engine: bool = False
    """Run a second engine, without the draft, for what speculation cannot serve."""

    replace_engine: Literal["auto", "beside", "restart"] = "auto"
    """For a draft of another shape: a second engine that starts `beside` the first and takes over;
    a `restart`, with 503 meanwhile; `auto`: beside on a CPU with enough memory, else restart."""
    canary_prompts: Path | None = None
    """JSON lines with `prompt` or `messages` that a new draft is tried on; None: built-in ones."""

    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    stall_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """An engine that works on requests and answers not one token to a trial in this time is
    started again."""

    @model_validator(mode="before")
    @classmethod
    def _name_after_target(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("served_model_name") and values.get("target"):
            values = {**values, "served_model_name": Path(values["target"]).resolve().name}
        return values

    @model_validator(mode="before")
    @classmethod
    def _lookahead_of_the_draft(cls, values: dict[str, Any]) -> dict[str, Any]:
        draft = values.get("draft")
        if draft and values.get("num_speculative_tokens") is None:
            advised = advised_lookahead(Path(draft))
            values = {**values, "num_speculative_tokens": advised} if advised else values
        return values

    @model_validator(mode="after")
    def _profile_is_of_this_pair(self) -> Settings:
        if self.profile is not None:
            check_profile(read_profile(self.profile), self.target, self.draft)
        return self

    @model_validator(mode="after")
    def _two_engines_fit(self) -> Settings:
        if self.plain_engine and not self.speculates:
            raise ValueError("plain_engine needs a draft: without one the engine is plain already")
        if self.plain_engine and (self.gpu_memory_fraction or 0) > 0.5:
            raise ValueError("with plain_engine each of two engines takes gpu_memory_fraction: 0.5")
        return self

    @model_validator(mode="after")
    def _engine_beside_fits(self) -> Settings:
        if self.replace_engine != "beside" or uses_cpu_wheel():
            return self
        engines = 2 + self.plain_engine
        if self.gpu_memory_fraction is None or engines * self.gpu_memory_fraction > 1:
            raise ValueError(
                f"with replace_engine 'beside' {engines} engines share a GPU for a while: set "
                f"gpu_memory_fraction to {0.9 / engines:.2f}"
            )
        return self

    @model_validator(mode="after")
    def _lenience_has_an_effect(self) -> Settings:
        if self.lenience < 1 and not self.speculates:
            raise ValueError("lenience needs a draft: without one there is nothing to accept")
        if self.lenience < 1 and self.rejection_sample_method == "block":
            raise ValueError("lenience goes with rejection_sample_method 'standard' only")
        return self

    @property
    def speculates(self) -> bool:
        return speculates(self.speculation_method, self.draft)

    def plain_engine_config(self) -> EngineConfig | None:
        """The second engine, the same without the draft; None when it is not asked for."""
        if not self.plain_engine:
            return None
        return replace(self.engine_config(), draft=None, method="draft_model")

    def engine_config(self) -> EngineConfig:
        fraction = self.gpu_memory_fraction
        if fraction is None and self.plain_engine and not uses_cpu_wheel():
            fraction = _HALF_A_GPU
        return EngineConfig(
            target=self.target,
            draft=self.draft,
            method=self.speculation_method,
            rejection_sample_method=self.rejection_sample_method,
            served_model_name=self.served_model_name,
            num_speculative_tokens=self.num_speculative_tokens,
            draft_sample_method=self.draft_sample_method,
            lookahead_control=(
                "fixed" if self.speculation_method in DRAFTLESS_METHODS else self.lookahead_control
            ),
            profile=self.profile,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_bytes=self.kv_cache_bytes,
            gpu_memory_fraction=fraction,
            enforce_eager=self.enforce_eager,
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            data_parallel_size=self.data_parallel_size,
            devices=self.devices,
            lenience=self.lenience,
            traces_endpoint=traces_endpoint(),
            tool_call_parser=self.tool_call_parser or tool_call_parser_for(self.target),
        )


def load_settings(**flags: object) -> Settings:
    """Settings from the environment, with the flags that are not None on top.

    Raises:
        ValueError: one sentence that names the first wrong setting.
    """
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ValueError(wrong_setting(error)) from error


def wrong_setting(error: ValidationError, table: str = "") -> str:
    """One sentence that names the first wrong setting, which stands in `table`."""
    first = error.errors()[0]
    where = ".".join([*filter(None, [table]), *map(str, first["loc"])]) or "settings"
    if first["type"] == "extra_forbidden":
        return f"Setting '{where}' is unknown."
    return f"Setting '{where}' is wrong: {first['msg'].removeprefix('Value error, ')}."
