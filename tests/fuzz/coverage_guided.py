"""One parser under atheris, which looks for inputs that reach code that none did before.

`python -m tests.fuzz.coverage_guided TARGET SEED SECONDS FOLDER`. It ends with another code than
0 when something was found; the input is in FOLDER then.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(name: str, seed: str, seconds: str, folder: str) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris  # not for every Python

    with atheris.instrument_imports(include=["dissectors", "upcall_trace"]):
        from tests.fuzz.targets import take, targets

    with tempfile.TemporaryDirectory() as work:
        target = targets(Path(work))[name]
        corpus = Path(work) / "corpus"
        corpus.mkdir()
        for number, sample in enumerate(list(target.known())[:200]):
            (corpus / str(number)).write_bytes(sample)
        words = [f"-seed={seed}", f"-max_total_time={seconds}", f"-artifact_prefix={folder}/"]
        limits = ["-timeout=20", "-rss_limit_mb=2000", "-max_len=20000", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *words, *limits, str(corpus)], lambda raw: take(target, raw))
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
