"""One table of codes, and no second place where one is written down."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from upcall_trace import codes
from upcall_trace.codes import Code, Family, Severity, Side

SOURCES = Path(codes.__file__).parent


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every text of a Python source with its line; what stands in an f-string included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def written_down(folder: Path) -> list[str]:
    """Where a text is a code, `file:line`; the table itself is not asked."""
    known = {str(code) for code in codes.table()}
    return [
        f"{path.relative_to(folder)}:{line}"
        for path in sorted(folder.rglob("*.py"))
        if path.name != "codes.py" or path.parent != folder
        for line, text in texts(path.read_text("utf-8"))
        if text.strip().upper() in known
    ]


def test_no_code_is_written_down_outside_the_table(tmp_path: Path) -> None:
    assert written_down(SOURCES) == []
    (tmp_path / "planted.py").write_text('"""About UP301."""\nfound = {"UP301", "up301"}\n')
    assert written_down(tmp_path) == ["planted.py:2", "planted.py:2"]


def test_the_table_is_in_order_and_every_number_and_name_is_there_once() -> None:
    numbers = [str(code) for code in codes.table()]
    assert numbers == sorted(numbers)
    names = [code.name for code in codes.table()]
    assert len(set(names)) == len(names) == len(set(numbers)) == 70
    for code in codes.table():
        assert re.fullmatch(r"UP[1-8]\d\d", code)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code.name)


def test_a_code_has_its_constant_by_its_name() -> None:
    for code in codes.table():
        assert getattr(codes, code.name.upper().replace("-", "_")) is code


def test_a_code_is_the_same_object_after_a_pickle() -> None:
    assert pickle.loads(pickle.dumps(codes.MMIO_OVERLAP)) is codes.MMIO_OVERLAP
    own = Code("ACME1", "acme-broken", Severity.NOTE, Side.OPERATOR)
    again = pickle.loads(pickle.dumps(own))
    assert (again, again.name, again.severity, again.side) == (
        own, "acme-broken", Severity.NOTE, Side.OPERATOR,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "family"),
    [
        (codes.NO_LISTENER, Family.CONNECTING),
        (codes.VCPU_NOT_STARTED, Family.CPUS),
        (codes.UNEXPLAINED_RESULT, Family.MESSAGES),
        (codes.VM_DIED, Family.OUTSIDE),
        (Code("ACME1", "acme-broken", Severity.NOTE, Side.OPERATOR), Family.OTHERS),
    ],
)
def test_a_code_belongs_to_the_family_of_its_number(code: Code, family: Family) -> None:
    assert code.family is family
    assert family.title
