"""Who may know whom, and that docs/architecture.md draws the imports that there are."""

import ast
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "forge_mcp"
DIAGRAM = PACKAGE.parent / "docs" / "architecture.md"

FOUNDATION = {"schemas", "settings", "workspace", "machine", "errors", "locks"}
ENGINES = {
    "mining",
    "raft",
    "retrieval",
    "quality",
    "training",
    "judging",
    "exporting",
    "serving",
}
# An engine knows another only where the flow says so.
FLOW = {
    ("raft", "retrieval"),
    ("raft", "mining"),
    ("quality", "raft"),
    ("quality", "retrieval"),
    ("quality", "mining"),
    ("judging", "training"),
    ("judging", "raft"),
    ("exporting", "training"),
}
FOUNDATION_ORDER = ("errors", "locks", "schemas", "settings", "machine", "workspace")
# Packages that take long to import: only where they are used, never to list the skills.
HEAVY = {
    "mlx",
    "mlx_lm",
    "transformers",
    "matplotlib",
    "bm25s",
    "xllamacpp",
    "gguf",
    "git",
    "tree_sitter",
    "numpy",
    "ollama",
    "rensa",
    "chromadb",
    "pyarrow",
    "snowballstemmer",
    "dbos",
    "sqlalchemy",
    "psutil",
}


def room(module: str) -> str | None:
    """'forge_mcp.mining.python' → 'mining'; None for what is not ours or the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "forge_mcp" and len(parts) > 1 else None


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "forge_mcp":
                found |= {f"forge_mcp.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@cache
def parsed() -> dict[Path, ast.Module]:
    return {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


def room_of(path: Path) -> str | None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    return (
        None
        if relative.name in ("__init__", "__main__") and len(relative.parts) == 1
        else relative.parts[0]
    )


@cache
def edges() -> set[tuple[str, str]]:
    found = set()
    for path, tree in parsed().items():
        here = room_of(path)
        for module in imports(tree):
            there = room(module)
            if here and there and here != there and there != "__version__":
                found.add((here, there))
    return found


def allowed(here: str, there: str) -> bool:
    if there in FOUNDATION and here not in FOUNDATION:
        return True
    if here in FOUNDATION:
        return there in FOUNDATION and FOUNDATION_ORDER.index(there) < FOUNDATION_ORDER.index(here)
    if here in ENGINES:
        return (here, there) in FLOW
    if here == "pipeline":
        return there in ENGINES
    if here == "jobs":
        return there in {"pipeline", "training"}
    return here == "interfaces" and there in {"jobs", "pipeline"}


def test_nobody_knows_whom_they_may_not() -> None:
    assert not {edge for edge in edges() if not allowed(*edge)}


def test_the_rooms_are_those_of_the_design() -> None:
    rooms = {room_of(path) for path in parsed()} - {None}
    assert rooms == ENGINES | FOUNDATION | {"interfaces", "jobs", "pipeline"}


def test_the_diagram_draws_the_imports_that_there_are() -> None:
    block = re.search(r"```mermaid\n(.*?)```", DIAGRAM.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    drawn = set()
    for line in block[1].splitlines():
        if "-->" in line:
            groups = [[name.strip() for name in part.split("&")] for part in line.split("-->")]
            for sources, targets in pairwise(groups):
                drawn |= {(source, target) for source in sources for target in targets}
    real = {edge for edge in edges() if edge[1] not in FOUNDATION}
    assert drawn == real


def test_declaring_every_skill_imports_no_heavy_package() -> None:
    code = (
        "import sys, forge_mcp.interfaces.cli; from forge_mcp.jobs.skills import skills;"
        f"skills(); print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dbos_is_known_to_the_jobs_only() -> None:
    knowing = {room_of(path) for path, tree in parsed().items() if "dbos" in imports(tree)}
    assert knowing == {"jobs"}


def test_every_module_says_what_it_is() -> None:
    for path, tree in parsed().items():
        assert ast.get_docstring(tree), f"{path} has no docstring"
