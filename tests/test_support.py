"""What the tests themselves rest on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import limited


def test_a_program_under_a_file_size_limit_leaves_no_half_compiled_module(tmp_path: Path) -> None:
    (tmp_path / "long_module.py").write_text("VALUES = [\n" + "    'value',\n" * 9999 + "]\n")
    script = "import long_module; print(len(long_module.VALUES))"
    program = limited([sys.executable, "-c", script], "RLIMIT_FSIZE", 512)
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == "9999\n"
    assert not (tmp_path / "__pycache__").exists()
