from pathlib import Path

import pytest

from draftsmith.distill.processor import multiplies_bfloat16, processor_flags


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16", True),
        ("flags : fpu avx2 amx_bf16", True),
        ("Features : fp asimd bf16", True),
        ("flags : fpu avx2 avx512f avx512_vnni", False),
    ],
)
def test_flags_of_a_processor(tmp_path: Path, line: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    assert multiplies_bfloat16(processor_flags(tmp_path / "cpuinfo")) is native


def test_a_system_that_lists_no_features(tmp_path: Path) -> None:
    assert not multiplies_bfloat16(processor_flags(tmp_path / "none"))
