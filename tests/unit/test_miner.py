"""The miner against Python's own parser, exact fixtures in other languages, and odd files."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import git
import pytest

from forge_mcp.errors import BadInput, Cancelled, NotFound, Unavailable
from forge_mcp.mining import repository
from forge_mcp.mining.languages import language
from forge_mcp.mining.miner import (
    MinedRepository,
    parse_repository,
)
from forge_mcp.pipeline.extract import ExtractRequest, ExtractResult, extract
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace

FIXTURES = Path(__file__).parent.parent / "fixtures"
SAMPLE = FIXTURES / "sample_python_repo"
LANGUAGE_FILES = FIXTURES / "languages"


def mine(root: Path, **mining: object) -> MinedRepository:
    loose = {"min_tokens": 0, "workers": 1} | mining
    return parse_repository(root, load_settings(None, {"mining": loose}))


def every(mined: MinedRepository) -> dict[str, CodeBlock]:
    return {block.id: block for block in [*mined.blocks, *mined.rejected]}


def reasons(mined: MinedRepository) -> dict[str, list[str]]:
    return {block.id: block.reasons for block in mined.rejected}


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_imports_resolve_across_packages(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "src/app/__init__.py": "",
            "src/app/core.py": "class Base:\n    def run(self): pass\ndef go(): pass\n",
            "src/app/sub/__init__.py": "from ..core import go\n",
            "src/app/sub/x.py": "import app.core\nimport app.core as c\nfrom app import core, sub\n"
            "from .. import core as up\n"
            "def a():\n    app.core.go(); c.go(); core.Base.run(); sub.go(); up.nothing()\n"
            "class D(core.Base):\n    def m(self): self.run(); super().run()\n"
            "    def run(self): super().run(); super().none()\n",
            "cmd/main.go": 'package main\nimport "example.com/x/util/text"\n'
            "func main() { text.Trim(); text.none() }\n",
            "util/text/t.go": "package text\n\n// Trim it.\nfunc Trim() {}\n",
            "j/a/A.java": "package j.a; import j.b.B; class A { void f() { B.g(); new B(); } }",
            "j/b/B.java": "package j.b; public class B { static void g() {} }",
            "web/index.js": "export function start() {}\n",
            "web/app/main.js": "import { start } from '..'; import d from 'react';\n"
            "function boot() { start(); d(); }\n",
        },
    )
    blocks = every(mine(tmp_path))
    core = "src/app/core.py::"
    assert blocks["src/app/sub/x.py::a"].dependencies == [
        f"{core}go",
        f"{core}Base.run",
        "up.nothing",
    ]
    assert blocks["src/app/sub/x.py::D.run"].dependencies == [
        f"{core}Base.run",
        "super().none",
    ]
    assert blocks["src/app/sub/x.py::D.m"].dependencies == [
        "src/app/sub/x.py::D.run",
        f"{core}Base.run",
    ]
    assert blocks["src/app/sub/x.py::D"].dependencies[0] == f"{core}Base"
    assert blocks["cmd/main.go::main"].dependencies == ["util/text/t.go::Trim", "text.none"]
    assert blocks["j/a/A.java::A.f"].dependencies == ["j/b/B.java::B.g", "j/b/B.java::B"]
    assert blocks["web/app/main.js::boot"].dependencies == ["web/index.js::start", "d"]


def test_a_missing_grammar_is_named_and_nothing_is_mined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = language("go")
    monkeypatch.setattr(type(go), "package", "tree-sitter-nowhere")
    go.__dict__.pop("grammar", None)
    write(tmp_path, {"a.py": "def f(): return g(1)\n", "b.go": "package b\n"})
    with pytest.raises(Unavailable, match="grammar for go") as caught:
        mine(tmp_path)
    assert "pip install" in caught.value.next_step
    go.__dict__.pop("grammar", None)


# -- a repository ------------------------------------------------------------------------------


def test_sample_repository() -> None:
    mined = mine(SAMPLE)
    assert mined.files == 8
    assert mined.skipped_files == {"other_language": 2}
    blocks = every(mined)
    total = blocks["stockroom/pricing.py::total"]
    assert total.license == "MIT"
    assert [p["kind"] for p in total.metadata["parameters"]] == [
        "positional_only",
        "positional_only",
        "var_positional",
        "keyword_only",
        "var_keyword",
    ]
    assert blocks["stockroom/models.py::Part.label"].model_dump()["reasons"] == ["trivial"]
    assert blocks["stockroom/legacy.py::old_number"].metadata["parameters"][1]["default"] == '"ZÜ"'
    assert "test" in reasons(mined)["tests/test_store.py::bolt"]
    module = blocks["stockroom/models.py::<module>"]
    assert (module.name, module.qualified_name) == ("models", "stockroom.models")
    assert module.docstring == "Parts and the shelves that they lie on."
    assert module.metadata["constants"][0] == {"name": "DEFAULT_SHELF_CAPACITY", "value": "120"}
    assert module.metadata["imports"][0] == "from __future__ import annotations"
    assert blocks["stockroom/__init__.py::<module>"].name == "stockroom"


def test_dependencies_of_the_sample_repository() -> None:
    blocks = every(mine(SAMPLE))
    put = blocks["stockroom/store.py::Store.put"].dependencies
    assert put[:2] == ["stockroom/store.py::audited", "shelf.fits"]
    assert "stockroom/errors.py::OutOfStock" in put
    take = blocks["stockroom/store.py::Store.take"].dependencies
    assert "stockroom/store.py::Store.count" in take
    value = blocks["stockroom/store.py::Store.value"].dependencies
    assert "stockroom/pricing.py::total" in value
    total = blocks["stockroom/pricing.py::total"].dependencies
    assert "stockroom/pricing.py::discount" in total
    test = blocks["tests/test_store.py::test_too_few_parts_are_an_error"].dependencies
    assert "stockroom/store.py::Store" in test  # through the package's re-export
    gone = blocks["stockroom/errors.py::OutOfStock"].dependencies
    assert gone[0] == "stockroom/errors.py::StockError"


def test_dependencies_stay_names_where_they_are_not_certain(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": "def twice(): pass\ndef twice(): pass\n"
            "def f(g):\n    twice(); g(); len(g); f(g)\n"
            "def g(): pass\n"
            "class A(B):\n    def m(self): self.n(); n()\n    def n(self): pass\n"
            "class C(A):\n    def k(self): self.n(); self.unknown(); other.n()\n",
            "go/x.go": "package x\nfunc A() { b(); c.D() }\nfunc (t *T) M() { t.n(); T{} }\n",
            "go/y.go": "package x\nfunc b() {}\ntype T struct{}\nfunc (t T) n() {}\n",
            "p/One.java": "package p; class One "
            "{ void f() { g(); new Two(); Two.h(); } void g(){} }",
            "p/Two.java": "package p; class Two { static void h(){} }",
        },
    )
    blocks = every(mine(tmp_path))
    assert blocks["a.py::twice#2"].name == "twice"
    assert blocks["a.py::f"].dependencies == ["twice", "g", "len"]
    assert blocks["a.py::A.m"].dependencies == ["a.py::A.n", "n"]
    assert blocks["a.py::C.k"].dependencies == ["a.py::A.n", "self.unknown", "other.n"]
    assert blocks["go/x.go::A"].dependencies == ["go/y.go::b", "c.D"]
    assert blocks["go/x.go::T.M"].dependencies == ["go/y.go::T.n"]
    assert blocks["p/One.java::One.f"].dependencies == [
        "p/One.java::One.g",
        "p/Two.java::Two",
        "p/Two.java::Two.h",
    ]


def test_typescript_imports_resolve() -> None:
    blocks = every(mine(LANGUAGE_FILES))
    assert blocks["shapes.ts::distance#2"].dependencies == ["geometry.ts::length"]
    assert blocks["queue.js::Queue.load"].dependencies[1:] == ["queue.js::parse", "queue.js::Queue"]


@pytest.mark.parametrize("root", [SAMPLE, LANGUAGE_FILES], ids=lambda path: path.name)
def test_spans_slice_the_file(root: Path) -> None:
    blocks = every(mine(root))
    assert len(blocks) > 30
    for block in blocks.values():
        data = (root / block.path).read_bytes()
        text = data[block.start_byte : block.end_byte].decode(
            block.metadata.get("encoding", "utf-8")
        )
        assert text == block.source_code, block.id
        assert data[: block.start_byte].count(b"\n") + 1 == block.start_line
        assert data[: block.end_byte].count(b"\n") + 1 == block.end_line
        assert block.content_hash == hashlib.sha256(block.source_code.encode()).hexdigest()
        for text in quotable(block):
            assert text in block.source_code, (block.id, text)


def quotable(block: CodeBlock) -> list[str]:
    """Every text of a block's metadata that other rooms may quote."""
    metadata = block.metadata
    texts = [block.signature, metadata.get("returns", "")]
    for key in ("decorators", "raises", "return_expressions", "calls", "bases", "methods"):
        texts += metadata.get(key, [])
    texts += metadata.get("imports", [])
    for row in [*metadata.get("parameters", []), *metadata.get("constants", [])]:
        texts += [value for key, value in row.items() if key != "kind"]
    return texts


@pytest.mark.parametrize(
    ("data", "language_name", "lines"),
    [
        (b"def f(a):\r\n    '''Doc\r\n    more'''\r\n    return a\r\n", "python", (1, 4)),
        (b"\xef\xbb\xbf# c\ndef f(a):\n\treturn a\n", "python", (2, 3)),
        (b"\n\n\tfunction f(a) {\r\n\t\treturn a\r\n\t}\r\n", "javascript", (3, 5)),
        ("# -*- coding: cp1252 -*-\ndef f(a): return '€'\n".encode("cp1252"), "python", (2, 2)),
    ],
    ids=["crlf", "bom", "tabs", "cookie"],
)
def test_odd_bytes_keep_exact_spans(
    tmp_path: Path, data: bytes, language_name: str, lines: tuple[int, int]
) -> None:
    name = {"python": "f.py", "javascript": "f.js"}[language_name]
    write(tmp_path, {name: data})
    block = every(mine(tmp_path))[f"{name}::f"]
    assert (block.start_line, block.end_line) == lines
    encoding = block.metadata.get("encoding", "utf-8")
    assert data[block.start_byte : block.end_byte].decode(encoding) == block.source_code
    assert "\r" not in block.docstring
    assert block.source_code.endswith(("a", "}", "'€'"))


def test_filters_and_their_reasons(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": '''
def documented(a, b):
    """Add up."""
    return [a + b, a - b, a * b]

def bare(a, b):
    return [a + b, a - b, a * b]

def _private(a, b):
    """Add up."""
    return [a + b, a - b, a * b]

class Plain:
    """A thing with a value."""

    def get_value(self):
        return self._value

    def set_value(self, value):
        self._value = value

    def nothing(self):
        """Do nothing."""
        pass
''',
            "test_a.py": "def helper(a, b):\n    '''Help.'''\n    return [a + b, a - b, a * b]\n",
        },
    )
    found = reasons(mine(tmp_path, require_docstring=True, include_private=False))
    assert found == {
        "a.py::bare": ["no_docstring"],
        "a.py::_private": ["private"],
        "a.py::Plain.get_value": ["no_docstring", "trivial"],
        "a.py::Plain.set_value": ["no_docstring", "trivial"],
        "a.py::Plain.nothing": ["trivial"],
        "test_a.py::helper": ["test"],
    }
    assert "a.py::bare" not in reasons(mine(tmp_path))
    assert "test_a.py::helper" not in reasons(mine(tmp_path, include_tests=True))
    sized = reasons(mine(tmp_path, min_tokens=25, max_tokens=30))
    assert sized["a.py::Plain"] == ["too_long"]
    assert "too_short" in sized["a.py::Plain.nothing"]


def test_quality_score_prefers_documented_and_complex_code() -> None:
    blocks = every(mine(SAMPLE))
    good = blocks["stockroom/store.py::Store.take"].quality_score
    plain = blocks["stockroom/store.py::Store._compact"].quality_score
    trivial = blocks["stockroom/models.py::Part.label"].quality_score
    assert 1 >= good > plain > trivial >= 0


# -- the skill ---------------------------------------------------------------------------------


def context(tmp_path: Path, events: list[Event] | None = None, **call: object) -> SkillContext:
    return SkillContext(
        workspace=Workspace(tmp_path / "forge"),
        settings=load_settings(None, {"mining": {"workers": 1} | call}),
        project="stockroom",
        sink=(events if events is not None else []).append,
    )


def test_extract_makes_a_corpus_once(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(SAMPLE, repo)
    git.Repo.init(repo).index.add(["README.md"])
    events: list[Event] = []
    here = context(tmp_path, events)
    result = extract(ExtractRequest(repo=str(repo)), here)
    artifact = here.workspace.load(result.corpus_id, "corpus")
    artifact.verify()
    assert result.path == str(artifact.path)
    blocks = [CodeBlock.model_validate(row) for row in artifact.rows("blocks.jsonl")]
    rejected = [RejectedBlock.model_validate(row) for row in artifact.rows("rejected.jsonl")]
    assert result.blocks == len(blocks) == result.languages["python"]
    assert all(block.reasons for block in rejected)
    assert sum(result.rejected.values()) >= len(rejected)
    assert artifact.manifest.repository is not None
    assert artifact.manifest.repository.dirty
    assert artifact.manifest.repository.revision is None
    done = [event.payload["done"] for event in events if event.kind == "progress"]
    assert done == list(range(9))

    again = extract(ExtractRequest(repo=str(repo)), here)
    assert again == result
    assert len(here.workspace.artifacts("corpus")) == 1
    with_tests = extract(ExtractRequest(repo=str(repo), include_tests=True), here)
    assert with_tests.corpus_id != result.corpus_id
    assert with_tests.blocks > result.blocks
    (repo / "stockroom/pricing.py").write_text("def total(a, b):\n    return [a * b, a + b, a]\n")
    changed = extract(ExtractRequest(repo=str(repo)), here)
    assert changed.corpus_id not in (result.corpus_id, with_tests.corpus_id)


def test_extract_stands_in_the_repository_by_default(tmp_path: Path) -> None:
    here = context(tmp_path)
    here = SkillContext(here.workspace, here.settings, here.project, repository=SAMPLE)
    found = extract(ExtractRequest(), here)
    assert (found.files, found.broken_files) == (8, 1)


def test_extract_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    here = context(tmp_path)
    with pytest.raises(NotFound, match="nowhere"):
        extract(ExtractRequest(repo=str(tmp_path / "nowhere")), here)
    file = write(tmp_path, {"file.py": "x = 1\n"}) / "file.py"
    with pytest.raises(BadInput, match="not a folder"):
        extract(ExtractRequest(repo=str(file)), here)
    empty = write(tmp_path / "empty", {"README.md": "hello", "a.py": "def ("}).resolve()
    with pytest.raises(BadInput, match="no code") as caught:
        extract(ExtractRequest(repo=str(empty)), here)
    assert ".go" in caught.value.cause
    assert "1 other_language, 1 syntax_error" in caught.value.cause
    short = write(tmp_path / "short", {"a.py": "def f(): pass\n"})
    with pytest.raises(BadInput, match="passes the filters") as caught:
        extract(ExtractRequest(repo=str(short)), here)
    assert "too_short" in caught.value.cause
    assert here.workspace.artifacts("corpus") == []


def test_extract_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    cancel = threading.Event()
    here = context(tmp_path)

    def stop(event: Event) -> None:
        if event.payload.get("done") == 3:
            cancel.set()

    here = SkillContext(here.workspace, here.settings, "p", sink=stop, cancel=cancel)
    with pytest.raises(Cancelled):
        extract(ExtractRequest(repo=str(SAMPLE)), here)
    assert here.workspace.artifacts("corpus") == []


def test_mining_is_deterministic_and_parallel_mining_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = mine(LANGUAGE_FILES)
    monkeypatch.setattr(repository, "PARALLEL_FROM_FILES", 1)
    monkeypatch.setattr(repository, "CHUNK_FILES", 2)
    assert mine(LANGUAGE_FILES, workers=2) == alone
    result = ExtractResult.model_fields
    assert list(result) == [
        "corpus_id",
        "path",
        "files",
        "blocks",
        "rejected",
        "languages",
        "skipped_files",
        "secrets_redacted",
        "broken_files",
        "advice",
        "seconds",
    ]
