"""RMSNorm by the kernel that vLLM has for it, beside torch's operations."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Inside a process of its own: vLLM changes much of the one that imports it.
PROBE = """
import json, torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform
from draftsmith.server.engine import norms

current_platform.import_kernels()
torch.manual_seed(0)
norms.normalise_in_one_kernel()
found = {}
with set_current_vllm_config(VllmConfig()):
    for dtype in (torch.float32, torch.bfloat16):
        for width in (64, 576, 100):
            for rows in (1, 7):
                norm = RMSNorm(width, eps=1e-5, dtype=dtype)
                norm.weight.data = torch.rand(width).to(dtype)
                x, residual = (5 * torch.randn(2, rows, width)).to(dtype)
                strided = torch.randn(rows, 2 * width).to(dtype)[:, ::2]
                got = [norm.forward_cpu(x.clone()), *norm.forward_cpu(x.clone(), residual.clone()),
                       norm.forward_cpu(strided)]
                want = [norm.forward_native(x.clone()),
                        *norm.forward_native(x.clone(), residual.clone()),
                        norm.forward_native(strided)]
                errors = [float(((one.float() - other.float()).abs()
                                 / other.float().abs().clamp(min=1e-2)).max())
                          for one, other in zip(got, want)]
                found[f"{dtype}, {rows} x {width}"] = errors
overwritten = torch.ones(1, 64)
with set_current_vllm_config(VllmConfig()):
    out, _ = RMSNorm(64, dtype=torch.float32).forward_cpu(overwritten, torch.ones(1, 64))
print(json.dumps([found, out.data_ptr() == overwritten.data_ptr()]))
"""


@pytest.fixture(scope="module")
def probed() -> tuple[dict[str, list[float]], bool]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=True
    )
    errors, in_place = json.loads(done.stdout.splitlines()[-1])
    return errors, in_place


def test_it_says_what_torch_says_to_the_last_bit(
    probed: tuple[dict[str, list[float]], bool],
) -> None:
    """With and without a residual, for widths that the kernel refuses, and of strided rows."""
    errors, _ = probed
    assert len(errors) == 12
    for name, some in errors.items():
        # The weight is multiplied before or after rounding: two units of bfloat16's 2^-8.
        assert max(some) < (2**-6 if "bfloat16" in name else 1e-5), (name, some)


def test_the_kernel_is_what_runs(probed: tuple[dict[str, list[float]], bool]) -> None:
    """Torch's operations would leave their argument as it is."""
    assert probed[1]
