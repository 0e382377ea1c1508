"""Small repositories for the tests of the miner, mined to the lines of their corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from pydantic_core import from_json

from forge_mcp.mining.repository import Counts, Progress, mine_repository
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.settings import Settings, load_settings

# Nothing is rejected for its size, so that tests can be short.
LOOSE = {"min_tokens": 0, "workers": 1, "include_tests": True, "include_private": True}


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """Make files below a folder, which is returned."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def settings(**mining: object) -> Settings:
    """The default settings, with some of [mining]; blocks of any size by default."""
    return load_settings(None, {"mining": LOOSE | mining})


@dataclass
class Mined:
    """The two files of a corpus, byte for byte, and what was counted."""

    blocks: bytes
    rejected: bytes
    counts: Counts
    hashes: dict[str, str]
    cached: bool  # whether there was a cache to use
    read: list[str] = field(default_factory=list)  # files that were not taken from the cache

    @property
    def lines(self) -> tuple[bytes, bytes]:
        """What must not depend on processes and caches."""
        return self.blocks, self.rejected

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every row; those of rejected.jsonl last."""
        return [from_json(line) for line in (self.blocks + self.rejected).splitlines()]

    @property
    def every(self) -> dict[str, CodeBlock]:
        """Every block by its id, checked against its schema."""
        found: list[CodeBlock] = []
        found += [CodeBlock.model_validate_json(line) for line in self.blocks.splitlines()]
        found += [RejectedBlock.model_validate_json(line) for line in self.rejected.splitlines()]
        by_id = {block.id: block for block in found}
        assert len(by_id) == len(found), "ids are not unique"
        return by_id

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why blocks are rejected, by id."""
        return {row["id"]: row["reasons"] for row in map(from_json, self.rejected.splitlines())}


def mine(
    root: Path,
    chosen: Settings | None = None,
    *,
    cache: Path | None = None,
    since: str | None = None,
    progress: Progress | None = None,
) -> Mined:
    """Mine a repository to its lines."""
    read: list[str] = []

    def note(done: int, total: int, path: str) -> None:
        read.append(path)
        if progress is not None:
            progress(done, total, path)

    with mine_repository(root, chosen or settings(), note, cache=cache, since=since) as mining:
        parts = list(mining.lines())
        return Mined(
            b"".join(trained for trained, _ in parts),
            b"".join(others for _, others in parts),
            mining.counts,
            mining.hashes,
            mining.cache is not None,
            sorted(read),
        )


# -- repositories ------------------------------------------------------------------------------

# Files of four languages that look at each other over one and more files.
REPOSITORY: dict[str, str | bytes] = {
    "a.py": "from pkg import alpha, Base\n\n\nclass K(Base):\n    def run(self):\n"
    "        return self.go(alpha(1))\n",
    "pkg/__init__.py": "from .core import alpha\nfrom .core import Base\n",
    "pkg/core.py": "from .deep import *\n\n\ndef alpha(x):\n    return beta(x)\n\n\n"
    "class Base(Root):\n    def run(self):\n        return super().go(1)\n",
    "pkg/deep.py": "def beta(x):\n    return [x, x]\n\n\nclass Root:\n    def go(self, x):\n"
    "        return beta(x)\n",
    "t/a.ts": "import { alpha, Base } from './index'\nexport class K extends Base {\n"
    "  run() { return this.go(alpha(1)) }\n}\n",
    "t/index.ts": "export * from './core'\n",
    "t/core.ts": "export function alpha(x: number) { return x + 1 }\n"
    "export class Base { go(x: number) { return alpha(x) } }\n",
    "go.mod": "module example.com/m\n",
    "g/a.go": 'package g\n\nimport "example.com/m/h"\n\ntype K struct{ h.Base }\n\n'
    "func (k K) Run() int { return k.Go(help(1)) }\n",
    "g/b.go": "package g\n\nfunc help(x int) int { return x + 1 }\n",
    "h/c.go": "package h\n\ntype Base struct{ Root }\n\nfunc Use() int { return inner(2) }\n",
    "h/d.go": "package h\n\ntype Root struct{}\n\nfunc (r Root) Go(x int) int { return inner(x) }\n"
    "\nfunc inner(x int) int { return x * 2 }\n",
    "j/p/A.java": "package j.p;\n\nimport j.q.Base;\n\nclass A extends Base {\n"
    "  int run() { return this.go(1) + B.help(2); }\n}\n",
    "j/p/B.java": "package j.p;\n\nclass B {\n  static int help(int x) { return x + 1; }\n}\n",
    "j/q/Base.java": "package j.q;\n\npublic class Base {\n  int go(int x) { return x * 2; }\n}\n",
    "README.md": "Nothing to mine.\n",
}


NAMES = ["alpha", "beta", "go", "Root", "Base"]
PYTHON_FILES = ["a.py", "m.py", "pkg/__init__.py", "pkg/core.py", "pkg/deep.py"]
SCRIPT_FILES = ["t/a.ts", "t/core.ts", "t/index.ts", "t/m.js"]
GO_FILES = ["g/a.go", "g/b.go", "h/c.go", "h/d.go"]
JAVA_FILES = ["j/p/A.java", "j/p/B.java", "j/q/Base.java"]
DIGIT = st.integers(0, 9)
BROKEN = ["def f(:\n    pass\ndef g(): return 1\n", "class {{{ (\n", "", "\x00\x01", "x = 1\n"]


@st.composite
def python_file(draw: st.DrawFn) -> str:
    """One of PYTHON_FILES: it imports from the others, and calls what they may define."""
    modules = st.sampled_from(["pkg", "pkg.core", "pkg.deep", "a", "m", ".core", ".deep", "."])
    names = st.sampled_from([*NAMES, "*", "core"])
    lines = [f"from {draw(modules)} import {draw(names)}" for _ in range(draw(st.integers(0, 2)))]
    lines += draw(st.sampled_from([[], [], [], ["__all__ = ['alpha']"], ["go = None"]]))
    for name in draw(st.lists(st.sampled_from(["alpha", "beta", "go"]), max_size=2)):
        lines += [f"def {name}(x):", f"    return {draw(st.sampled_from(NAMES))}({draw(DIGIT)})"]
    for name in draw(st.lists(st.sampled_from(["Root", "Base"]), max_size=1)):
        lines += [f"class {name}({draw(st.sampled_from(['Root', 'Base', 'object']))}):"]
        lines += [f"    def {draw(st.sampled_from(['go', 'run']))}(self):"]
        lines += ["        return self.go(super().go(beta(1)))"]
    return "\n".join(lines) + "\n"


@st.composite
def script_file(draw: st.DrawFn) -> str:
    """One of SCRIPT_FILES."""
    modules = st.sampled_from(["./index", ".", "./core", "./m", "./a"])
    ways = ["import {{ {0} }} from '{1}'", "export * from '{1}'", "import * as {0} from '{1}'"]
    lines = [
        draw(st.sampled_from(ways)).format(draw(st.sampled_from(NAMES)), draw(modules))
        for _ in range(draw(st.integers(0, 2)))
    ]
    for name in draw(st.lists(st.sampled_from(["alpha", "beta", "go"]), max_size=2)):
        called = draw(st.sampled_from([*NAMES, "go.alpha"]))
        lines += [f"export function {name}(x) {{ return {called}({draw(DIGIT)}) }}"]
    for name in draw(st.lists(st.sampled_from(["Root", "Base"]), max_size=1)):
        base = draw(st.sampled_from(["", "extends Root ", "extends Base "]))
        lines += [f"export class {name} {base}{{ run() {{ return this.go(alpha(1)) }}"]
        lines += [draw(st.sampled_from(["", "  go(x) { return x }"])), "}"]
    return "\n".join(lines) + "\n"


@st.composite
def go_file(draw: st.DrawFn) -> str:
    """One of GO_FILES."""
    lines = ["package x", f'import "example.com/m/{draw(st.sampled_from("gh"))}"']
    for name in draw(st.lists(st.sampled_from(["Alpha", "beta", "Go"]), max_size=2)):
        called = draw(st.sampled_from(["Alpha", "beta", "Go", "g.Alpha", "h.Go"]))
        lines += [f"func {name}(x int) int {{ return {called}({draw(DIGIT)}) }}"]
    for name in draw(st.lists(st.sampled_from(["Root", "Base"]), max_size=1)):
        lines += [
            f"type {name} struct {{ {draw(st.sampled_from(['', 'Root', 'h.Base', 'g.Base']))} }}"
        ]
    if draw(st.booleans()):
        on, name = draw(st.sampled_from(["Root", "Base"])), draw(st.sampled_from(["Run", "Go"]))
        lines += [f"func (r {on}) {name}() int {{ return r.Go(beta(1)) }}"]
    return "\n".join(lines) + "\n"


@st.composite
def java_file(draw: st.DrawFn) -> str:
    """One of JAVA_FILES."""
    imported = draw(st.sampled_from(["j.q.*", "j.q.Base", "j.p.A", "j.p.*"]))
    name, base = draw(st.sampled_from(["A", "B", "Base"])), draw(st.sampled_from(["A", "Base"]))
    method = draw(st.sampled_from(["go", "run", "help"]))
    called = draw(st.sampled_from(["this.go", "B.help", "run", "super.go", "Base.help"]))
    return (
        f"package j.{draw(st.sampled_from('pq'))};\nimport {imported};\n"
        f"class {name} extends {base} {{\n"
        f"  static int {method}(int x) {{ return {called}({draw(DIGIT)}); }}\n}}\n"
    )
