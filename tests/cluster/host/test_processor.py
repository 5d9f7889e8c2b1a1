"""What a processor can do is read from the kernel's list."""

from pathlib import Path

import pytest

from cluster.host.processor import bfloat16_flags


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", ["amx_bf16", "avx512_bf16"]),
        ("Features\t: fp asimd bf16\n", ["bf16"]),
        ("flags\t\t: fpu avx2\n", []),
        ("", []),
    ],
)
def test_bfloat16_is_read_from_the_processors_flags(cpuinfo: str, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert bfloat16_flags(tmp_path / "cpuinfo") == flags


def test_a_kernel_without_the_list_has_no_flags(tmp_path: Path) -> None:
    assert bfloat16_flags(tmp_path / "cpuinfo") == []
