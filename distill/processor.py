"""What this machine's processor multiplies, as Linux tells it: no torch needed."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86's two ways, and Arm's."""


def processor_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Names of the processor's features; empty where the system does not list them."""
    try:
        return frozenset(cpuinfo.read_text().split())
    except OSError:
        return frozenset()


def multiplies_bfloat16(flags: frozenset[str] | None = None) -> bool:
    """Whether the processor multiplies bfloat16 itself.

    Where it does not, each product is computed one by one: a step over eight tokens takes eight
    times as long as a step over one, so that batches gain nothing and no draft can pay.
    """
    return bool(_BFLOAT16 & (processor_flags() if flags is None else flags))
