"""JSON Schemas of every JSON output and of every file that users write, for docs/schemas.

`make docs` writes them. Those of files are in `input_schemas`. Those of outputs are made from real
outputs: what a key may hold is merged over many captures, so a schema says what the program prints
and nothing else. Keys whose names are data (fields, notes, counts) are maps. A test holds
the schemas to other outputs, and refuses a key that no schema has.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tools.input_schemas import INPUTS
from upcall_trace.cli import main
from upcall_trace.codes import Severity, Side

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "docs" / "schemas"
_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_MAPS: Final = frozenset({"fields", "notes", "operations", "reply", "tools", "capabilities"})
"""Objects whose keys are data; `anomalies` of info is one as well, a list elsewhere."""
_WORDS: Final = {
    "severity": [severity.word for severity in Severity],
    "side": [side.value for side in Side],
}
GOLDEN: Final = sorted((ROOT / "tests" / "golden").glob("*.jsonl"))
PCAPS: Final = sorted((ROOT / "tests" / "golden").glob("*.pcap"))
LOGS: Final = sorted((ROOT / "tests" / "cases").glob("*/*.log"))
IMAGES: Final = sorted((ROOT / "tests" / "memory").glob("*.img"))


def outputs(*arguments: str | Path) -> list[Any]:
    """What a command prints, one value a line."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit:
            pass
    return [json.loads(line) for line in out.getvalue().splitlines() if line.strip()]


def samples() -> dict[str, list[Any]]:
    """Outputs of each kind, by the name of their schema."""
    recordings = [*GOLDEN, *PCAPS]
    return {
        "operation": [
            *(v for path in recordings for v in outputs("show", "--json", path)),
            *outputs("show", "--json", *GOLDEN[:2]),
        ],
        "frame": [
            *(
                value
                for path in GOLDEN[:6] + PCAPS[:2]
                for value in outputs("show", "--frames", "--json", path)
            ),
            *outputs("show", "--frames", "--json", *GOLDEN[:2]),
        ],
        "info": [
            *(v for path in recordings for v in outputs("info", "--json", path)),
            *outputs("info", "--json", *GOLDEN[:2]),
        ],
        "findings": [
            value for path in [*recordings, *LOGS] for value in outputs("diagnose", "--json", path)
        ],
        "state": [v for path in GOLDEN for v in outputs("state", "--json", path)],
        "diff": [
            value
            for one, other in pairwise(GOLDEN)
            for value in outputs("diff", "--json", one, other)
        ],
        "peek": [v for path in IMAGES for v in outputs("peek", "--json", path)],
        "plugins": outputs("plugins", "--json"),
        "doctor": outputs("doctor", "--json"),
    }


def inferred(values: Iterable[Any], name: str = "") -> dict[str, Any]:
    """The schema that all of some values have."""
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kinds.setdefault(_kind(value), []).append(value)
    schema: dict[str, Any] = {"type": sorted(kinds)[0] if len(kinds) == 1 else sorted(kinds)}
    if name in _WORDS and set(kinds) <= {"string", "null"}:
        schema["enum"] = [*_WORDS[name], *([None] if "null" in kinds else [])]
    if objects := kinds.get("object"):
        schema |= _object(objects, name)
    if arrays := kinds.get("array"):
        items = [each for array in arrays for each in array]
        schema["items"] = inferred(items, name) if items else {}
    return schema


def _object(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    if name in _MAPS or name == "anomalies":
        inner = [each for one in objects for each in one.values()]
        return {"additionalProperties": inferred(inner) if inner else {}}
    keys = dict.fromkeys(key for one in objects for key in one)
    return {
        "properties": {key: inferred([o[key] for o in objects if key in o], key) for key in keys},
        "required": [key for key in keys if all(key in one for one in objects)],
        "additionalProperties": False,
    }


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def schema_texts() -> dict[str, str]:
    """The text of each schema by its file's name."""
    return input_schema_texts() | {
        f"{name}.schema.json": _text(name, inferred(values)) for name, values in samples().items()
    }


def input_schema_texts() -> dict[str, str]:
    """Those of the files that users write."""
    return {f"{name}.schema.json": _text(name, made()) for name, made in INPUTS.items()}


def _text(name: str, schema: dict[str, Any]) -> str:
    return (
        json.dumps({"$schema": _DRAFT, "title": f"upcall-trace: {name}", **schema}, indent=1) + "\n"
    )


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file_name, text in schema_texts().items():
        (FOLDER / file_name).write_text(text, "ascii")
        sys.stdout.write(f"{(FOLDER / file_name).relative_to(ROOT)}\n")
