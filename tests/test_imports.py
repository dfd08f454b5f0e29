"""Imports go one way: docs/developing.md. Read off every module's source, lazy imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tools.wings import EVERYBODYS, WINGS

ROOT = Path(__file__).parents[1]
OURS = ("dissectors", "upcall_trace")
DISSECTORS = {
    # module: what it may import of its own package
    "errors": set(),
    "constants": set(),
    "tables": {"constants", "errors"},
    "layouts": {"constants", "tables"},
    "wire_formats": {"constants", "layouts", "tables"},
    "slots": set(),
    "codecs": {"constants", "errors", "slots", "tables"},
    "messages": {"codecs", "constants", "layouts"},
    "services": {"codecs", "constants", "errors", "layouts", "messages", "tables"},
    "vsockmon": {"constants", "errors"},
    "events": {"services"},
    "hvsock": {"constants", "events"},
    "channel": {"constants", "errors", "events", "hvsock", "messages", "services"},
    "phases": set(),
    "open_requests": {"services"},
    "observer": {
        "constants", "events", "hvsock", "messages", "open_requests", "phases", "services", "slots",
    },
    "lua": {"constants", "layouts", "tables"},
    "scapy_layers": {"codecs", "constants", "layouts", "services", "tables", "vsockmon"},
}  # fmt: skip
OUTSIDE_WORLD = {
    "asyncio", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib", "random", "select",
    "selectors", "signal", "socket", "socketserver", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(*folders: str) -> dict[str, Path]:
    return {name_of(path): path for folder in folders for path in (ROOT / folder).rglob("*.py")}


SOURCES = modules(*OURS)


@cache
def imports(path: Path, root: Path = ROOT) -> frozenset[str]:
    """Every module that a file names in an import, by its full name."""
    package = path.relative_to(root).parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            within = {f"{module}.{alias.name}" for alias in node.names} & set(SOURCES)
            whole = len(within) == len(node.names)
            found |= within if whole else within | {module}
    return frozenset(found)


def top(module: str) -> str:
    return module.partition(".")[0]


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def users(wanted: str, *folders: str) -> set[str]:
    """The modules that import `wanted` or something in it."""
    return {
        name
        for name, path in modules(*(folders or OURS)).items()
        if any(inside(module, wanted) for module in imports(path))
    }


def test_the_reader_of_imports_sees_every_kind() -> None:
    assert {"numpy", "upcall_trace.capture.reader", "upcall_trace.trace.filters"} <= imports(
        SOURCES["upcall_trace.cli.show"]
    )
    assert "upcall_trace.cli" in imports(SOURCES["upcall_trace.__main__"])
    assert "rich.console" in imports(SOURCES["upcall_trace.cli.support.output"])  # in a function
    assert "dissectors.layouts" in imports(ROOT / "tests" / "dissectors" / "test_layouts.py")


def third_party(module: str) -> set[str]:
    used = {top(name) for name in imports(SOURCES[module])}
    return used - set(sys.stdlib_module_names) - {*OURS, "__future__"}


@pytest.mark.parametrize("name", [name for name in SOURCES if inside(name, "dissectors")])
def test_the_dissectors_need_nothing_but_python(name: str) -> None:
    allowed = {"dissectors.wire_formats": {"construct"}, "dissectors.scapy_layers": {"scapy"}}
    assert third_party(name) <= allowed.get(name, set())
    assert not any(inside(module, "upcall_trace") for module in imports(SOURCES[name]))


@pytest.mark.parametrize("name", [name for name in SOURCES if inside(name, "dissectors")])
def test_the_dissectors_touch_nothing_outside(name: str) -> None:
    assert not {top(module) for module in imports(SOURCES[name])} & OUTSIDE_WORLD


def test_the_dissectors_import_each_other_one_way() -> None:
    found = {}
    for name, path in SOURCES.items():
        if inside(name, "dissectors.") or name.startswith("dissectors."):
            own = {module for module in imports(path) if inside(module, "dissectors")}
            found[name.removeprefix("dissectors.")] = {m.removeprefix("dissectors.") for m in own}
    assert set(found) == set(DISSECTORS)
    for name, used in found.items():
        assert used <= DISSECTORS[name], name
    done: set[str] = set()
    for name in DISSECTORS:  # it stands in order, so there is no cycle in it
        assert DISSECTORS[name] <= done, name
        done.add(name)


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Every way round that a walk through the graph meets."""
    state: dict[str, str] = {}

    def walk(name: str, way: list[str]) -> Iterator[list[str]]:
        state[name] = "on the way"
        for other in sorted(graph[name]):
            if state.get(other) == "on the way":
                yield [*way[way.index(other) :], other]
            elif other not in state:
                yield from walk(other, [*way, other])
        state[name] = "done"

    for name in graph:
        if name not in state:
            yield from walk(name, [name])


def test_no_module_imports_itself_round_a_corner() -> None:
    # Python imports the package itself before any module of it, so that is no way round.
    others = {name: set(SOURCES) - {name, "upcall_trace"} for name in SOURCES}
    graph = {name: set(imports(path)) & others[name] for name, path in SOURCES.items()}
    assert list(circles(graph)) == []
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [["b", "c", "b"]]


def wing(module: str) -> str:
    """The row of `WINGS` that a module belongs to; empty for what stands beside the folders."""
    first, _, rest = module.partition(".")
    return (
        first if first == "dissectors" else top(rest) if f"{first}.{top(rest)}" in FOLDERS else ""
    )


FOLDERS = {name_of(path) for path in (ROOT / "upcall_trace").glob("*/__init__.py")}


def reachable(name: str) -> set[str]:
    """The wings that this one may import: those it names, and what those may import."""
    named = set(WINGS[name].imports)
    return named.union(*(reachable(other) for other in named))


def against_the_table(sources: dict[str, Path], root: Path = ROOT) -> list[str]:
    """Every import that the table does not allow, `module -> module`."""
    allowed = {name: reachable(name) | {name} for name in WINGS}
    return [
        f"{module} -> {other}"
        for module, path in sources.items()
        if wing(module)
        for other in sorted(imports(path, root))
        if top(other) in OURS
        and other not in EVERYBODYS
        and wing(other) not in allowed[wing(module)]
    ]


def test_every_folder_imports_what_the_table_allows() -> None:
    assert {f"upcall_trace.{name}" for name in WINGS} - {"upcall_trace.dissectors"} == FOLDERS
    assert against_the_table(SOURCES) == []


def test_an_import_that_the_table_does_not_allow_is_seen(tmp_path: Path) -> None:
    copy = tmp_path / "upcall_trace" / "capture" / "planted.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(
        "def read():\n    from ..trace.filters import parse\n    import dissectors.hvsock\n"
    )
    found = {"upcall_trace.capture.planted": copy}
    assert against_the_table(found, tmp_path) == [
        "upcall_trace.capture.planted -> dissectors.hvsock",
        "upcall_trace.capture.planted -> upcall_trace.trace.filters",
    ]


def test_the_table_goes_one_way() -> None:
    above: set[str] = set()
    for name, row in WINGS.items():
        assert set(row.imports) <= above, name
        above.add(name)


TO_BE_SPLIT: set[str] = set()


def test_few_files_stand_beside_the_folders_and_none_is_long() -> None:
    loose = [name for name in SOURCES if inside(name, "upcall_trace") and not wing(name)]
    assert len(loose) <= 8, loose
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name for name, size in lengths.items() if size > 450} <= TO_BE_SPLIT


def test_only_the_command_line_knows_the_command_line() -> None:
    for wanted in ("upcall_trace.cli", "click"):
        for name in users(wanted):
            assert inside(name, "upcall_trace.cli") or name == "upcall_trace.__main__", wanted
    assert "upcall_trace.cli" in users("click")


@pytest.mark.parametrize("name", ["trace", "views", "sources"])
def test_what_a_capture_means_is_no_business_of_a_screen_or_a_socket(name: str) -> None:
    for module, path in SOURCES.items():
        if inside(module, f"upcall_trace.{name}"):
            used = {top(other) for other in imports(path)}
            assert not used & {"click", "rich", "textual", "socket"}, module


def test_scapy_is_in_two_modules_and_never_whole() -> None:
    assert users("scapy") == {"dissectors.scapy_layers", "upcall_trace.sources.pcap_scapy"}
    assert users("scapy.all", *OURS, "tests", "tools", "benchmarks") == set()
    assert "tests.dissectors.test_scapy_layers" in users("scapy", "tests")


def test_textual_is_only_in_the_terminal_interface() -> None:
    assert all(inside(name, "upcall_trace.tui") for name in users("textual"))
    assert "upcall_trace.tui.app" in users("textual")


def test_the_terminal_interface_reaches_no_socket() -> None:
    reached = {name for name in SOURCES if inside(name, "upcall_trace.tui")}
    waiting = list(reached)
    while waiting:
        for other in imports(SOURCES[waiting.pop()]) & set(SOURCES):
            if other not in reached:
                reached.add(other)
                waiting.append(other)
    used = {module for name in reached for module in imports(SOURCES[name])}
    assert "upcall_trace.diagnose.engine" in reached
    assert not {"socket", "socketserver", "upcall_trace.sockets.addresses"} & used


def loaded(code: str, part: str = "name.partition('.')[0]") -> set[str]:
    """The packages that a fresh Python has loaded after running `code`, or what of their names."""
    report = f"import sys; print(*{{{part} for name in sys.modules}}, file=sys.stderr)"
    ended = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nexcept SystemExit:\n    pass\n{report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(ended.stderr.split())


HEAVY = {"construct", "lark", "msgpack", "numpy", "rich", "scapy", "textual"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    packages = loaded(f"from upcall_trace.cli import main; main({arguments})")
    assert {"click", "upcall_trace"} <= packages
    assert not packages & HEAVY


ASKED_FOR: dict[str, set[str]] = {
    "upcall_trace.diagnose.engine": {"show --json", "diagnose"},
    "upcall_trace.diagnose.told_by_logs": {"diagnose"},
    "upcall_trace.views.frames": {"show --frames"},
    "upcall_trace.trace.provenance": {"show --frames"},
}
"""What few commands load, and which of those below do."""
NEVER = {
    "backports.zstd", "compression.zstd", "gzip", "lzma", "re2", "tomllib",
    "upcall_trace.capture.ring", "upcall_trace.diagnose.log_inputs", "upcall_trace.logs.table",
    "upcall_trace.trace.filters",
}  # fmt: skip
"""What reads packed files, parts of a recording, worlds, logs and filters: none of them is given.
"""


@pytest.mark.parametrize("command", ["info", "show", "show --json", "show --frames", "diagnose"])
def test_a_command_loads_what_it_was_asked_for(command: str) -> None:
    arguments = [*command.split(), str(ROOT / "captures" / "cpu_lifecycle.upcap")]
    modules = loaded(f"from upcall_trace.cli import main; main({arguments})", "name")
    assert "upcall_trace.trace.opening" in modules
    assert not modules & NEVER
    asked_for = {name for name, commands in ASKED_FOR.items() if command in commands}
    assert modules & set(ASKED_FOR) == asked_for
    assert {name for name in NEVER if inside(name, "upcall_trace")} < set(SOURCES)


def test_the_decoder_loads_nothing_but_itself() -> None:
    packages = loaded("import dissectors.observer, dissectors.channel, dissectors.vsockmon")
    assert "dissectors" in packages
    assert not packages & {*HEAVY, "click", "upcall_trace"}


def test_a_class_name_stands_for_one_thing() -> None:
    found: dict[str, list[str]] = {}
    for name, path in SOURCES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}
