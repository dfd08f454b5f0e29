"""Measures how far findings can be trusted, and writes docs/diagnosis-accuracy.md.

`python -m tools.measure_accuracy` rewrites the page; the same seeds give the same page. It takes
some minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.diagnose.comparing import LACKING, compared

from .markdown import table

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "diagnosis-accuracy.md"
SEEDS: Final = range(2000)
_HEADINGS: Final = (
    "lacking", "world", "requests", "certain causes", "certain and wrong", "only inferred",
    "cause not named",
)  # fmt: skip
_TEXT: Final = """# How far findings can be trusted

The findings are compared with a kernel model. It answered random requests on random guests: both
architectures, all kernel series, several connections, split, short and damaged requests, overlaps,
and vCPUs that the VMM creates meanwhile. The model predicts every reply byte of the recordings in
`tests/golden/`. Each row has {recordings:,} recordings, as far as they can lack what the row says.
`python -m tools.measure_accuracy` makes this page.

{table}

- *lacking* is what was removed from each recording before it was diagnosed.
- *world* says whether the program got the guest's state at boot (`--world`).
- *certain causes* are findings of a request's cause that are not marked as inferred. *certain and
  wrong* are those of them that the model contradicts.
- *only inferred* are requests with inferred causes and no certain one.
- *cause not named* are failed requests whose decisive cause is not among the findings, although the
  reply or the lasting silence is in the recording.

With a world the model also relies on what happened on other connections, so the recording must have
those. Connections are numbered. If a number is missing, the model's word is only an inference from
there on. Before that, nobody can notice it: of {premature:,} causes that were certain by then,
{mistaken:,} were wrong. Give `--world` only for recordings that have all of a guest's upcall
connections.
"""


def page(seeds: range) -> str:
    """The page with the figures of these seeds."""
    rows = [_row(lacking, world, seeds) for lacking in LACKING for world in (False, True)]
    premature, mistaken = _premature(seeds)
    return _TEXT.format(
        recordings=len(seeds),
        table=table(_HEADINGS, rows),
        premature=premature,
        mistaken=mistaken,
    )


def _row(lacking: str, with_world: bool, seeds: range) -> tuple[str, ...]:
    requests = certain = wrong = inferred = unnamed = 0
    for seed in seeds:
        one = compared(lacking, seed, with_world)
        if one is None:
            continue
        requests += len(one.made.truth)
        certain += sum(map(len, one.certain.values()))
        wrong += sum(map(len, one.wrong(one.certain).values()))
        inferred += sum(bool(c) for ref, c in one.inferred.items() if not one.certain[ref])
        unnamed += len(one.missed())
    counted = (requests, certain, wrong, inferred)
    named = f"{unnamed:,}" if lacking == "nothing" else ""
    world = "given" if with_world else ""
    return (lacking, world, *(f"{count:,}" for count in counted), named)


def _premature(seeds: range) -> tuple[int, int]:
    """Certain causes before a missing connection could be noticed, and the wrong ones of them."""
    told = wrong = 0
    for seed in seeds:
        one = compared("one connection", seed, with_world=True)
        if one is not None:
            told += sum(map(len, one.premature.values()))
            wrong += sum(map(len, one.wrong(one.premature).values()))
    return told, wrong


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(SEEDS), encoding="utf-8")


if __name__ == "__main__":
    main()
