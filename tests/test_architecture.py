"""The lines of the architecture, held on the source: who may import whom, what the event loop may not do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bot", "storage", "trainer")
MODEL_LIBRARIES = frozenset(
    {"torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "datasets", "gguf"}
)
# What the bot may use of its model server: the wire and the files, never the engine.
TORCH_FREE_SERVING = frozenset(
    {
        "bot.serving.client",
        "bot.serving.protocol",
        "bot.serving.model.adapter_files",
        "bot.serving.model.capabilities",
        "bot.serving.model.catalogue",
        "bot.serving.model.control_tokens",
        "bot.serving.model.lora",
        "bot.serving.model.lora.foreign",
        "bot.serving.model.hub",
        "bot.serving.model.identity",
        "bot.serving.model.memory",
        "bot.serving.model.processors",
        "bot.serving.model.shapes",
        "bot.serving.model.sources",
        "bot.serving.model.thoughts",
        "bot.serving.model.token_estimate",
        "bot.serving.errors",
        "bot.serving.native.library",
        "bot.serving.vllm.child",
    }
)
TOP_LEVEL = {
    "pyproject.toml",
    "requirements.lock",
    "Makefile",
    "LICENSE",
    "CHANGELOG.md",
    "README.md",
    "bot",
    "trainer",
    "storage",
    "tests",
    "deploy",
    ".ci",
    ".gitignore",
    ".dockerignore",
}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


# ----------------------------------------------------------------------------------------- reading the source
def sources(*folders: str) -> list[Path]:
    """All Python files below the given folders of the repository, in a stable order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """`bot/serving/client.py` -> `bot.serving.client`; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports(path: Path) -> frozenset[tuple[str, int]]:
    """Every (dotted name, line) that a file imports, also inside functions.

    `from a import b` counts as `a.b`, and as `a` too, since `b` may be a name in `a`.
    """
    found: set[tuple[str, int]] = set()
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            found.add((origin, node.lineno))
            found.update((f"{origin}.{alias.name}", node.lineno) for alias in node.names)
    return frozenset(found)


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def crossings(
    files: list[Path], forbidden: tuple[str, ...], allowed: frozenset[str] = frozenset()
) -> list[str]:
    """Imports at or below a forbidden package, unless at or below an allowed one, as `file:line: name`."""
    return sorted(
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in files
        for name, line in imports(path)
        if below(name, *forbidden) and not below(name, *allowed)
    )


def in_serving(path: Path) -> bool:
    return path.is_relative_to(ROOT / "bot/serving")


# --------------------------------------------------------------------------------------------- who knows whom
def test_storage_imports_neither_bot_nor_trainer_nor_a_model_library() -> None:
    assert crossings(sources("storage"), ("bot", "trainer", "discord", *MODEL_LIBRARIES)) == []


def test_the_bot_outside_its_model_server_never_imports_a_model_library_or_the_trainer() -> None:
    bot = [path for path in sources("bot") if not in_serving(path)]
    assert crossings(bot, ("trainer", *MODEL_LIBRARIES)) == []


def test_the_bot_reaches_its_model_server_only_through_the_torch_free_modules() -> None:
    bot = [path for path in sources("bot") if not in_serving(path)]
    reached = crossings(bot, ("bot.serving",), allowed=TORCH_FREE_SERVING)
    # `from bot.serving import client` names the package on its way to the module.
    assert [line for line in reached if not line.endswith((": bot.serving", ": bot.serving.model"))] == []


def test_the_model_server_imports_neither_discord_nor_storage_nor_the_rest_of_the_bot() -> None:
    serving = [path for path in sources("bot") if in_serving(path)]
    assert crossings(serving, ("discord", "simcord", "storage", "trainer")) == []
    outside = crossings(serving, ("bot",), allowed=frozenset({"bot.serving"}))
    assert [line for line in outside if not line.endswith(": bot")] == []


def test_the_trainer_knows_storage_and_the_model_server_only() -> None:
    assert crossings(sources("trainer"), ("discord", "simcord")) == []
    assert [
        line
        for line in crossings(sources("trainer"), ("bot",), allowed=frozenset({"bot.serving"}))
        if not line.endswith(": bot")
    ] == []


def test_the_torch_free_modules_stay_free_of_model_libraries_through_all_that_they_import() -> None:
    by_name = {module_name(path): path for path in sources("bot", "storage")}
    for start in TORCH_FREE_SERVING & by_name.keys():
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in by_name:
                continue
            seen.add(name)
            assert crossings([by_name[name]], tuple(MODEL_LIBRARIES)) == [], f"reached from {start}"
            waiting += [imported for imported, _ in imports(by_name[name])]


def test_only_the_stand_in_for_discord_touches_simcord() -> None:
    users = {line.split(":")[0] for line in crossings(sources(*PACKAGES), ("simcord",))}
    stand_in = {user for user in users if user.startswith("bot/playground/discord/")}
    assert users - stand_in <= {"bot/playground/discord/backend.py"}


def test_only_storage_touches_sqlite() -> None:
    """The file must never be open through two SQLite libraries in one process."""
    outside = sources("bot", "trainer")
    assert crossings(outside, ("sqlite3", "pysqlite3")) == []


@pytest.mark.parametrize("path", ["bot/__init__.py", "bot/serving/__init__.py"])
def test_packages_that_two_processes_share_have_an_empty_init(path: str) -> None:
    assert (ROOT / path).read_text() == ""


def test_the_command_line_starts_without_loading_a_model_library() -> None:
    """The import lines above, checked once more by really importing; and what slows every command down."""
    unwanted = MODEL_LIBRARIES | {"trainer", "sqlite3", "pandas", "huggingface_hub"}
    probe = (
        "import sys, bot.cli.app, bot.app, storage.config\n"
        f"print(*sorted(set(sys.modules) & {set(unwanted)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", probe], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert loaded <= {"sqlite3"}, loaded


# ------------------------------------------------------------------------------------------------- the layers
# From the top down: a package imports what stands below its own line, never what stands on it or above.
LAYERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("bot.__main__", "bot.cli.__main__"),
        ("bot.cli",),
        ("bot.app",),
        ("bot.privacy", "bot.admin", "bot.learning", "bot.feedback", "bot.telemetry"),
        ("bot.chat",),
        ("bot.ui",),
        ("bot.client",),
        ("bot.charts", "bot.operators", "bot.features"),
        ("bot.language",),
        ("bot.playground.__main__",),
        ("bot.playground.saved_state",),
        ("bot.playground.server",),
        ("bot.playground.page",),
        ("bot.playground.simulation",),
        ("bot.playground.discord",),
        ("bot.playground.errors",),
        ("bot.dashboard",),
        ("bot.services", "bot.gateway", "bot.delivery", "bot.diagnostics"),
        ("bot.errors",),
        ("bot.serving.__main__",),
        ("bot.serving.api",),
        ("bot.serving.engine", "bot.serving.vllm", "bot.serving.prepare"),
        ("bot.serving.client",),
        ("bot.serving.inventory",),
        ("bot.serving.connection",),
        ("bot.serving.client_parsing", "bot.serving.server_probe"),
        ("bot.serving.model",),
        ("bot.serving.native", "bot.serving.settings", "bot.serving.gpu_claim", "bot.serving.first_word"),
        ("bot.serving.endpoint",),
        ("bot.serving.protocol", "bot.serving.sse"),
        ("bot.serving.errors", "bot.serving.model.capabilities", "bot.serving.model.identity"),
        ("bot.serving.messages", "bot.serving.logs"),
    ),
    (
        ("storage.imports", "storage.telemetry"),
        ("storage.privacy",),
        ("storage.learning",),
        ("storage.feedback",),
        ("storage.chat",),
        ("storage.admin", "storage.process"),
        ("storage.db", "storage.config"),
        ("storage.config_edit", "storage.experiments"),
        ("storage.config_text",),
        ("storage.config_sections",),
        ("storage.cron",),
        ("storage.errors",),
        ("storage.sentences",),
    ),
    (
        ("trainer.__main__",),
        ("trainer.experiment",),
        ("trainer.run", "trainer.schedule", "trainer.export"),
        ("trainer.placement",),
        ("trainer.lora_gguf",),
        ("trainer.on_policy",),
        ("trainer.gate",),
        ("trainer.report",),
        ("trainer.evaluation", "trainer.training"),
        ("trainer.data",),
        ("trainer.model_server",),
        ("trainer.errors",),
    ),
)
# What members do with replies is theirs to take back: /privacy shows it.
BESIDE = {("bot.privacy", "bot.feedback")}
# What is still to be cut. Each entry must still be needed: the lists only shrink.
KNOWN_CIRCLES: set[frozenset[str]] = set()
KNOWN_LONG: set[str] = set()
MOST_MODULES, MOST_LINES = 16, 400
# The database's history is one list: what has shipped stays as it is.
MAY_BE_LONG = {"storage/db/migrations.py"}


@cache
def file_graph() -> dict[str, frozenset[str]]:
    """Which module imports which, among ours; what is imported only for its types counts like the rest."""
    by_name = {module_name(path): path for path in sources(*PACKAGES)}
    return {name: frozenset(_modules_named(path, by_name.keys()) - {name}) for name, path in by_name.items()}


def _modules_named(path: Path, known: Container[str]) -> set[str]:
    """The modules that a file imports; `from a import b` is `a.b` where that is a module, else `a`."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in known else str(node.module) for name in inner)
    return {name for name in found if name in known}


def layer_of(module: str) -> tuple[str, int, int]:
    """The entry of the table that a module belongs to, its table and its line."""
    found = [
        (entry, number, line)
        for number, table in enumerate(LAYERS)
        for line, entries in enumerate(table)
        for entry in entries
        if below(module, entry)
    ]
    return max(found, key=lambda each: len(each[0]), default=("", -1, -1))


def goes_up(importer: str, imported: str) -> bool:
    """Whether an import goes to what stands above, or beside."""
    (upper, table, line), (lower, other_table, other_line) = layer_of(importer), layer_of(imported)
    if upper == lower or table != other_table or (upper, lower) in BESIDE:
        return False
    return other_line <= line


def circles(graph: dict[str, frozenset[str]]) -> set[frozenset[str]]:
    """The sets of modules that reach each other (Tarjan, 1972: strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for each in sorted(graph[name]):
            if each not in order:
                visit(each)
                lowest[name] = min(lowest[name], lowest[each])
            elif each in stack:
                lowest[name] = min(lowest[name], order[each])
        if lowest[name] == order[name]:
            members = frozenset(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.add(members)

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def test_every_module_stands_in_the_table_of_layers() -> None:
    packages = {name for name in file_graph() if (ROOT / name.replace(".", "/")).is_dir()}
    assert {name for name in file_graph().keys() - packages if not layer_of(name)[0]} == set()


def test_every_entry_of_the_table_is_there() -> None:
    entries = {entry for table in LAYERS for line in table for entry in line}
    assert {entry for entry in entries if not any(below(name, entry) for name in file_graph())} == set()


def test_imports_go_down_only() -> None:
    upward = {
        (name, imported)
        for name, found in file_graph().items()
        for imported in found
        if goes_up(name, imported)
    }
    assert upward == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles(file_graph())
    assert found - KNOWN_CIRCLES == set(), "these modules need each other"
    assert KNOWN_CIRCLES - found == set(), "these are cut: take them out of KNOWN_CIRCLES"


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": "b", "b": "c", "c": ""}, []),
        ({"a": "b", "b": "a", "c": "a"}, ["ab"]),
        ({"a": "b", "b": "c", "c": "a", "d": "e", "e": "d", "f": "ad"}, ["abc", "de"]),
        ({"a": "bc", "b": "d", "c": "d", "d": ""}, []),
    ],
)
def test_the_search_for_circles_finds_what_it_should(graph: dict[str, str], expected: list[str]) -> None:
    found = circles({name: frozenset(each) for name, each in graph.items()})
    assert found == {frozenset(each) for each in expected}


def test_the_table_of_layers_refuses_what_it_should() -> None:
    assert goes_up("bot.client", "bot.chat.answerer")
    assert goes_up("bot.learning.status", "bot.feedback.reports")
    assert goes_up("storage.chat.replies", "storage.feedback.tastings")
    assert goes_up("trainer.on_policy.ranking", "trainer.run.heartbeat")
    assert not goes_up("bot.privacy.commands", "bot.feedback.my_ratings")
    assert not goes_up("bot.app", "bot.chat.setup")
    assert not goes_up("bot.chat.listener", "bot.chat.answerer")
    assert not goes_up("bot.chat.listener", "storage.chat.replies")


def test_the_trainer_reaches_the_model_server_s_client_and_model_only() -> None:
    allowed = {
        "bot.serving.client",
        "bot.serving.protocol",
        "bot.serving.errors",
        "bot.serving.first_word",
        "bot.serving.gpu_claim",
        "bot.serving.model",
    }
    reached = {
        imported for name, found in file_graph().items() if below(name, "trainer") for imported in found
    }
    assert {name for name in reached if below(name, "bot")} - {
        name for name in reached if below(name, *allowed)
    } == set()


def test_no_folder_holds_more_modules_than_one_can_see_at_a_glance() -> None:
    folders = Counter(path.parent for path in sources(*PACKAGES) if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > MOST_MODULES} == {}


def test_no_module_is_longer_than_one_can_keep_in_mind() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(*PACKAGES)
    }
    long = {path for path, count in lines.items() if count > MOST_LINES} - MAY_BE_LONG
    assert long - KNOWN_LONG == set(), "split these"
    assert KNOWN_LONG - long == set(), "these are short now: take them out of KNOWN_LONG"


# --------------------------------------------------------------------------------------------- the event loop
BLOCKING_CALLS = {
    "open",
    "input",
    "time.sleep",
    "os.fsync",
    "os.replace",
    "os.rename",
    "os.system",
    "shutil.copytree",
    "shutil.rmtree",
    "shutil.copy",
    "shutil.copyfile",
    "shutil.move",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "subprocess.Popen",
    "socket.create_connection",
    "urllib.request.urlopen",
    "hashlib.file_digest",
}
BLOCKING_MODULES = MODEL_LIBRARIES | {"sqlite3", "pysqlite3", "sqlite_utils", "requests", "safetensors"}
BLOCKING_METHODS = {"read_text", "write_text", "read_bytes", "write_bytes", "rglob"}
# Paths are asked with cheap system calls too (`exists`, `stat`); ruff's ASYNC240 names those.
DATABASE_METHODS = {"read", "write"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call's function, with `()` for what is computed on the way."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "()"


def calls_on_the_loop(coroutine: ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """The calls that a coroutine itself makes; nested functions and lambdas run where they are sent."""
    waiting: list[ast.AST] = list(coroutine.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting += ast.iter_child_nodes(node)


def blocks(call: ast.Call) -> bool:
    """Whether a call would hold up the event loop, as far as its name tells."""
    name = dotted(call.func)
    owner, _, method = name.rpartition(".")
    if name in BLOCKING_CALLS or name.split(".")[0] in BLOCKING_MODULES or method in BLOCKING_METHODS:
        return True
    # `database.read(...)` blocks until its query is done; coroutines use `aread` and `awrite`.
    return method in DATABASE_METHODS and owner.rpartition(".")[2].lstrip("_") == "database"


def test_no_coroutine_touches_sqlite_a_model_or_a_file_directly() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {dotted(call.func)} in {coroutine.name}"
        for path in sources(*PACKAGES)
        for coroutine in ast.walk(parsed(path))
        if isinstance(coroutine, ast.AsyncFunctionDef)
        for call in calls_on_the_loop(coroutine)
        if blocks(call)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("open('x')", ["open"]),
        ("await asyncio.to_thread(open, 'x')", []),
        ("torch.zeros(3)", ["torch.zeros"]),
        ("with self._database.read(q): pass", ["self._database.read"]),
        ("await self.database.aread(lambda db: db.read())", []),
        ("def work():\n        return path.read_text()\n    await asyncio.to_thread(work)", []),
        ("if x:\n        (folder / 'a').write_text('')", ["().write_text"]),
        ("[time.sleep(1) for _ in y]", ["time.sleep"]),
    ],
)
def test_the_search_for_blocking_calls_finds_what_it_should(body: str, expected: list[str]) -> None:
    coroutine = ast.parse(f"async def work():\n    {body}\n").body[0]
    assert isinstance(coroutine, ast.AsyncFunctionDef)
    assert [dotted(call.func) for call in calls_on_the_loop(coroutine) if blocks(call)] == expected


# ------------------------------------------------------------------------------------------ nothing at import
def statements_run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that an import evaluates; function bodies are left out, their defaults are not."""
    waiting: list[ast.AST] = [node for node in tree.body if not _is_main_guard(node)]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += [
                default for default in [*node.args.defaults, *node.args.kw_defaults] if default is not None
            ]
            continue
        waiting += ast.iter_child_nodes(node)


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)


def reads_environment(node: ast.AST) -> bool:
    """Whether a node reads the environment; `os.environ.setdefault` and assignments only write."""
    if isinstance(node, ast.Call):
        return dotted(node.func) in {
            "os.getenv",
            "getenv",
            "os.environ.get",
            "environ.get",
            "os.environ.copy",
        }
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return dotted(node.value) in {"os.environ", "environ"}
    return False


def loads_configuration(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func).endswith("load_config")


def test_nothing_reads_the_environment_or_a_configuration_at_import() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"
        for path in sources(*PACKAGES)
        for node in statements_run_at_import(parsed(path))
        if reads_environment(node) or loads_configuration(node)
    ]
    assert found == []


# --------------------------------------------------------------------------------------------------- tidiness
def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:  # an unpacked release, not a checkout
        return [
            path for path in ROOT.rglob("*") if path.is_file() and not path.is_relative_to(ROOT / ".venv")
        ]
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def test_the_top_level_holds_only_what_it_is_meant_to() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} <= TOP_LEVEL


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = [
        path for path in sources(*PACKAGES) if VAGUE_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert vague == []


def test_nothing_is_left_for_later() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]}"
        for path in sources(*PACKAGES, "tests")
        if unfinished.search(path.read_text(encoding="utf-8"))
        for token in _tokens(path)
        if token.type == tokenize.COMMENT and unfinished.search(token.string)
    ]
    assert found == []


def _tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    with path.open("rb") as file:
        yield from tokenize.tokenize(file.readline)


def test_no_code_is_a_stub() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*PACKAGES)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert found == []


def test_the_tree_carries_no_path_of_the_machine_it_was_written_on() -> None:
    text = [
        path
        for path in tracked_files()
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".service", ".js", ".html"}
    ]
    homes = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/[a-z]")
    found = [str(path.relative_to(ROOT)) for path in text if homes.search(path.read_text(encoding="utf-8"))]
    assert [name for name in found if name != "tests/test_architecture.py"] == []
