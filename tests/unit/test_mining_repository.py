"""The same lines whatever the number of processes, the cache and what happened before."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mining_helpers import (
    BROKEN,
    GO_FILES,
    JAVA_FILES,
    LOOSE,
    PYTHON_FILES,
    REPOSITORY,
    SCRIPT_FILES,
    Mined,
    go_file,
    java_file,
    mine,
    python_file,
    script_file,
    settings,
    write,
)

from forge_mcp import machine
from forge_mcp.errors import BadInput, ForgeError
from forge_mcp.mining import cache as cache_module
from forge_mcp.mining import repository
from forge_mcp.mining.files import list_files
from forge_mcp.mining.repository import mine_repository
from forge_mcp.mining.secrets import find_secrets
from forge_mcp.pipeline.extract import ExtractRequest, extract
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.settings import Settings, load_settings
from forge_mcp.workspace import Workspace

FIXTURES = Path(__file__).parent.parent / "fixtures"
MIT = "SPDX-License-Identifier: MIT\n"


def same(mined: Mined, other: Mined) -> None:
    assert mined.lines == other.lines
    assert mined.counts == other.counts
    assert mined.hashes == other.hashes


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example of hypothesis, which shares a test's fixtures among all."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@contextmanager
def clock_is_fine() -> Iterator[None]:
    """Files that were changed a moment ago are taken by their stamp alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "RACY_NANOSECONDS", 0)
        yield


def database(cache: Path) -> Path:
    (found,) = cache.rglob("mining.db")
    return found


# -- processes ---------------------------------------------------------------------------------


def test_processes_and_caches_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "r", REPOSITORY)
    shutil.copytree(FIXTURES / "languages", root / "languages")
    alone = mine(root, settings(workers=1))
    assert alone.blocks.count(b"\n") > 30
    assert alone.rejected  # trivial ones
    monkeypatch.setattr(repository, "PARALLEL_FROM_FILES", 1)
    monkeypatch.setattr(repository, "CHUNK_FILES", 3)
    cache = tmp_path / "cache"
    cold = mine(root, settings(workers=2), cache=cache)
    with clock_is_fine():  # only in this process: so it is here that the stamps are taken
        stamped = mine(root, settings(workers=1), cache=cache)
        warm = mine(root, settings(workers=2), cache=cache)
    for other in (cold, stamped, warm):
        same(other, alone)
    assert len(cold.read) == alone.counts.files
    assert warm.read == []
    same(mine(root, settings(workers=1), cache=cache), alone)


def die(*_: object) -> None:
    """What the kernel does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "r", REPOSITORY)
    monkeypatch.setattr(repository, "PARALLEL_FROM_FILES", 1)
    monkeypatch.setattr(repository, "CHUNK_FILES", 5)
    monkeypatch.setattr(repository, "_mine_chunk", die)
    with pytest.raises(ForgeError, match="died") as caught:
        mine(root, settings(workers=2), cache=tmp_path / "cache")
    assert "mining.workers=1" in caught.value.next_step
    monkeypatch.undo()
    same(mine(root, cache=tmp_path / "cache"), mine(root))


def test_workers_leave_interrupts_to_their_parent() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        repository._ignore_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_garbage_collection_is_as_before() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), machine.without_collection():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()
    gc.disable()
    try:
        with machine.without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


# -- edits -------------------------------------------------------------------------------------

CHOICES: dict[str, Settings] = {
    "usual": settings(),
    "short": settings(max_tokens=25),
    "documented": settings(require_docstring=True),
    "without": load_settings(None, {"mining": LOOSE, "project": {"exclude": ["pkg/core.py"]}}),
    "licensed": load_settings(None, {"mining": LOOSE, "project": {"allow_licenses": ["MIT"]}}),
}


EDITED = [*PYTHON_FILES, *SCRIPT_FILES, *GO_FILES, *JAVA_FILES, "go.mod"]


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, str, str]:
    """What is done to a repository between two runs: (what, path, content)."""
    what = draw(
        st.sampled_from(["write"] * 6 + ["remove", "rename", "touch", "cancel", "settings"])
    )
    path = draw(st.sampled_from([*PYTHON_FILES, *SCRIPT_FILES, *GO_FILES, *JAVA_FILES]))
    if what == "settings":
        return what, "", draw(st.sampled_from(list(CHOICES)))
    if what in ("touch", "remove"):
        return what, path, ""
    if what == "rename":
        others = [other for other in EDITED if Path(other).suffix == Path(path).suffix]
        return what, path, draw(st.sampled_from(others))
    if path == "go.mod":
        return what, path, draw(st.sampled_from(["module example.com/m\n", "module other\n", ""]))
    if draw(st.integers(0, 5)) == 0:
        return what, path, draw(st.sampled_from(BROKEN))
    made = {".py": python_file(), ".go": go_file(), ".java": java_file()}
    return what, path, draw(made.get(Path(path).suffix, script_file()))


class Repository:
    """A repository that is edited, with a cache that lives as long."""

    def __init__(self, here: Path) -> None:
        self.root = write(here / "r", REPOSITORY)
        self.cache = here / "cache"
        self.chosen = CHOICES["usual"]
        self.clock = count(1_600_000_000_000_000_000, 1_000_000)

    def edit(self, what: str, path: str, content: str) -> None:
        file = self.root / path
        if what == "settings":
            self.chosen = CHOICES[content]
        elif what == "remove":
            file.unlink(missing_ok=True)
        elif what == "rename":
            if file.exists():
                file.rename(self.root / content)
        elif what == "touch":
            if file.exists():
                self.stamp(file)
        else:
            if what == "cancel":
                self.cancelled_run()
            file.write_text(content)
            self.stamp(file)

    def stamp(self, file: Path) -> None:
        """No two changes at the same time, as far as the file system is concerned."""
        now = next(self.clock)
        os.utime(file, ns=(now, now))

    def cancelled_run(self) -> None:
        def stop(done: int, total: int, path: str) -> None:
            if done > total // 2:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            # With a setting of its own all files are read, and none is kept.
            mine(self.root, settings(max_tokens=17), cache=self.cache, progress=stop)

    def check(self) -> None:
        same(mine(self.root, self.chosen, cache=self.cache), mine(self.root, self.chosen))


# What a run notes of the names that it looks at must not depend on which file asked first.
THROUGH_ANOTHER = [
    ("write", "a.py", "from m import Base\nclass K(Base):\n    def run(self): self.go()\n"),
    ("write", "m.py", "from pkg.deep import Root\nclass Base(Root): pass\n"),
    ("write", "pkg/deep.py", "class Base:\n    def go(self): return [1]\n"),
]
THROUGH_A_PACKAGE = [
    ("write", "h/c.go", "package h\ntype Base struct{ Root }\nfunc Use() int { return help(2) }\n"),
    ("write", "h/d.go", "package h\ntype Root struct{}\nfunc help(x int) int { return x }\n"),
]


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(edits(), min_size=1, max_size=6), fine=st.booleans())
@example(steps=THROUGH_ANOTHER, fine=False)
@example(steps=THROUGH_A_PACKAGE, fine=True)
def test_a_warm_cache_gives_the_same_lines_after_any_edits(
    steps: list[tuple[str, str, str]], fine: bool
) -> None:
    with folder() as here:
        edited = Repository(here)
        with clock_is_fine() if fine else folder():
            edited.check()
            for step in steps:
                edited.edit(*step)
                edited.check()


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    edited = Repository(tmp_path)
    with clock_is_fine():
        assert len(mine(edited.root, cache=edited.cache).read) == len(REPOSITORY) - 2
        assert mine(edited.root, cache=edited.cache).read == []
        edited.edit("write", "pkg/deep.py", "def gamma(x):\n    return [x, x]\n")
        again = mine(edited.root, cache=edited.cache)
        assert again.read == ["pkg/deep.py"]
        edited.edit("touch", "t/core.ts", "")
        touched = mine(edited.root, cache=edited.cache)
        assert touched.read == ["t/core.ts"]  # its content is as before, which is kept
        assert mine(edited.root, cache=edited.cache).read == []
    assert touched.lines == again.lines
    # beta is gone, so what used it in a file that did not change has no block to name
    assert again.every["pkg/core.py::alpha"].dependencies == ["beta"]


def test_a_file_of_the_same_size_in_its_place(tmp_path: Path) -> None:
    edited = Repository(tmp_path)
    with clock_is_fine():
        edited.check()
        before = (edited.root / "pkg/deep.py").stat()
        other = write(
            tmp_path, {"new.py": b"def beto" + (edited.root / "pkg/deep.py").read_bytes()[8:]}
        )
        os.utime(other / "new.py", ns=(before.st_mtime_ns, before.st_mtime_ns))
        (other / "new.py").rename(edited.root / "pkg/deep.py")
        after = (edited.root / "pkg/deep.py").stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        edited.check()
    assert "pkg/deep.py::beto" in mine(edited.root, cache=edited.cache).every


def test_a_change_in_the_same_tick_of_a_coarse_clock_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system whose times are seconds: the size and all times stay the same."""
    for module in (cache_module, repository):
        monkeypatch.setattr(
            module,
            "stamp_of",
            lambda status: f"{status.st_size}:{status.st_mtime_ns // 10**9}",
        )
    root = write(tmp_path / "r", {"a.py": "def one(x):\n    return [x, x]\n"})
    tick = time.time_ns() // 10**9 * 10**9
    os.utime(root / "a.py", ns=(tick, tick))
    assert list(mine(root, cache=tmp_path / "c").every) == ["a.py::one"]
    write(root, {"a.py": "def two(x):\n    return [x, x]\n"})
    os.utime(root / "a.py", ns=(tick, tick))
    later = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert list(mine(root, cache=tmp_path / "c").every) == ["a.py::two"]


def test_a_changed_licence_is_seen_by_files_that_did_not_change(tmp_path: Path) -> None:
    edited = Repository(tmp_path)
    edited.chosen = CHOICES["licensed"]
    with clock_is_fine():
        edited.check()
        write(edited.root, {"pkg/LICENSE": MIT})
        edited.check()
    mined = mine(edited.root, edited.chosen, cache=edited.cache)
    assert mined.every["pkg/deep.py::beta"].license == "MIT"
    assert "pkg/deep.py::beta" not in mined.reasons
    assert "license" in mined.reasons["a.py::K"]


def test_a_changed_go_mod_is_seen_by_files_that_did_not_change(tmp_path: Path) -> None:
    edited = Repository(tmp_path)
    with clock_is_fine():
        edited.check()
        for module, found in (("other", "k.Go"), ("example.com/m", "h/d.go::Root.Go")):
            edited.edit("write", "go.mod", f"module {module}\n")
            edited.check()
            mined = mine(edited.root, cache=edited.cache)
            assert mined.every["g/a.go::K.Run"].dependencies[0] == found
        assert mine(edited.root, cache=edited.cache).read == []


def test_a_file_that_vanishes_meanwhile_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = Repository(tmp_path)
    edited.check()
    listing = list_files

    def vanish(*args: object) -> object:
        found = listing(*args)  # type: ignore[arg-type]
        (edited.root / "a.py").unlink(missing_ok=True)
        (edited.root / "g/b.go").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(repository, "list_files", vanish)
    assert mine(edited.root, cache=edited.cache).counts.skipped == {
        "other_language": 2,
        "unreadable": 2,
    }
    monkeypatch.undo()
    edited.check()


def test_names_that_are_no_utf8_do_not_stop_a_run(tmp_path: Path) -> None:
    root = write(tmp_path / "r", {"a.py": "def one(x):\n    return [x, x]\n"})
    (root / os.fsdecode(b"\xff\xfe.py")).write_text("def two(x):\n    return [x, x]\n")
    mined = mine(root, cache=tmp_path / "c")
    same(mined, mine(root, cache=tmp_path / "c"))
    assert list(mined.every) == ["a.py::one"]
    assert mined.counts.skipped == {"undecodable": 1}


def test_headers_are_mined_as_what_they_hold(tmp_path: Path) -> None:
    root = write(
        tmp_path / "r",
        {
            "a.h": "int twice(int x) { return x + x; }\n",
            "b.h": "namespace n { class A { int twice(int x) { return x + x; } }; }\n",
        },
    )
    for _ in range(2):
        with clock_is_fine():
            found = mine(root, cache=tmp_path / "c")
        assert found.every["a.h::twice"].language == "c"
        assert found.every["b.h::n.A.twice"].language == "cpp"
    assert found.read == []


@pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError])
def test_a_file_on_which_the_miner_fails_is_counted_and_the_others_are_mined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    edited = Repository(tmp_path)
    find = find_secrets

    def fail(text: str) -> object:
        if "def beta" in text:
            raise error("a bug")
        return find(text)

    monkeypatch.setattr(repository, "find_secrets", fail)
    for _ in range(2):
        mined = mine(edited.root, cache=edited.cache)
        assert mined.counts.skipped == {"other_language": 2, "miner_failed": 1}
        assert "pkg/core.py::alpha" in mined.every
    monkeypatch.undo()
    with clock_is_fine():
        edited.check()  # nothing was kept of the failure


# -- damage ------------------------------------------------------------------------------------


class Warmed:
    """A repository that does not change, and the bytes of its cache."""

    def __init__(self, here: Path) -> None:
        self.root = write(here / "r", REPOSITORY)
        with clock_is_fine():
            mine(self.root, cache=here / "c")
            assert mine(self.root, cache=here / "c").read == []
        self.data = database(here / "c").read_bytes()
        self.expected = mine(self.root)

    def check(self, data: bytes) -> None:
        """That other bytes in the place of the cache give the same lines, twice."""
        with folder() as here, clock_is_fine():
            mine(self.root, cache=here)
            database(here).write_bytes(data)
            same(mine(self.root, cache=here), self.expected)
            same(mine(self.root, cache=here), self.expected)

    def changed(self, here: Path, *statements: str | tuple[str, object]) -> bytes:
        """The cache after SQL statements, perhaps with a value."""
        path = here / "mining.db"
        path.write_bytes(self.data)
        with sqlite3.connect(path) as opened:
            for statement in statements:
                if isinstance(statement, str):
                    opened.execute(statement)
                else:
                    opened.execute(statement[0], statement[1:])
        opened.close()
        return path.read_bytes()


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Warmed:
    return Warmed(tmp_path_factory.mktemp("warmed"))


@hypothesis_settings(
    max_examples=40,
    deadline=None,
    phases=(Phase.generate,),  # to make such damage smaller says nothing, and takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(holes=st.lists(st.tuples(st.floats(0, 0.9999), st.binary(min_size=1)), min_size=1))
def test_a_damaged_cache_never_gives_other_lines(
    warmed: Warmed, holes: list[tuple[float, bytes]]
) -> None:
    whole = bytearray(warmed.data)
    for share, junk in holes:
        at = int(len(whole) * share)
        whole[at : at + len(junk)] = junk
    warmed.check(bytes(whole))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_cache_never_gives_other_lines(warmed: Warmed, share: float) -> None:
    warmed.check(warmed.data[: int(len(warmed.data) * share)])


@pytest.mark.parametrize("data", [b"no database", bytes(4096)], ids=["text", "zeros"])
def test_what_is_no_database_is_thrown_away(warmed: Warmed, data: bytes) -> None:
    warmed.check(data)


def test_a_broken_page_is_found_when_the_cache_is_opened(warmed: Warmed) -> None:
    page = int.from_bytes(warmed.data[16:18], "big")
    warmed.check(warmed.data[:page] + b"\xff" * page + warmed.data[2 * page :])


def test_a_cache_that_can_only_be_read_is_thrown_away(warmed: Warmed) -> None:
    """The 19th byte of SQLite's header: a version above 2 that it may not write."""
    warmed.check(warmed.data[:18] + b"\x07" + warmed.data[19:])


def test_damage_that_a_message_quotes(warmed: Warmed) -> None:
    """SQLite names what it cannot read, and Python cannot read the name."""
    table = b"tablefilesfiles"
    assert table in warmed.data
    warmed.check(warmed.data.replace(table, b"table\xc2\xad\x80\x1c\x80files\xff", 1))
    warmed.check(warmed.data.replace(b"CREATE TABLE files", b"\xff\xfeEATE TABLE \x80iles", 1))


COLUMNS = ("stamp", "key", "sha256", "language", "skipped", "digest", "counts", "names")


@pytest.mark.parametrize("value", [b"\x00\xffgarbage", None, "text", b"{}"], ids=repr)
@pytest.mark.parametrize("column", [*COLUMNS, "blocks", "rejected"])
def test_garbage_inside_a_row_never_gives_other_lines(
    warmed: Warmed, tmp_path: Path, column: str, value: object
) -> None:
    warmed.check(warmed.changed(tmp_path, (f"UPDATE files SET {column} = ?", value)))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE files",
        "ALTER TABLE files RENAME TO others",
        "ALTER TABLE files RENAME COLUMN counts TO amounts",
        "PRAGMA user_version = 99",
        "DELETE FROM files WHERE path LIKE 'pkg%'",
        "INSERT INTO files (path) VALUES ('zzz.py')",
        "UPDATE files SET blocks = (SELECT blocks FROM files WHERE path = 'a.py')",
    ],
)
def test_a_cache_of_another_shape_never_gives_other_lines(
    warmed: Warmed, tmp_path: Path, statement: str
) -> None:
    """As one that another version has left behind."""
    warmed.check(warmed.changed(tmp_path, statement))


@pytest.mark.parametrize("column", ["names", "blocks", "rejected"])
def test_damaged_rows_together(warmed: Warmed, tmp_path: Path, column: str) -> None:
    """Two rows are lost, and of a third what is only looked at when it is needed."""
    lost = "UPDATE files SET counts = x'00' WHERE path IN ('a.py', 't/core.ts')"
    damaged = f"UPDATE files SET {column} = x'00' WHERE path IN ('g/b.go', 't/a.ts')"
    warmed.check(warmed.changed(tmp_path, lost, damaged))


def test_a_cache_that_another_process_holds_is_done_without(tmp_path: Path) -> None:
    root = write(tmp_path / "r", REPOSITORY)
    cache = tmp_path / "c"
    with mine_repository(root, settings(), cache=cache) as first:
        assert first.cache is not None
        second = mine(root, cache=cache)
        assert not second.cached
        lines = list(first.lines())
    same(second, mine(root))
    assert b"".join(trained for trained, _ in lines) == second.blocks
    assert mine(root, cache=cache).cached


def test_repositories_have_caches_of_their_own(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a.py": "def one(x):\n    return [x, x]\n"})
    two = write(tmp_path / "two", {"a.py": "def two(x):\n    return [x, x]\n"})
    for root in (one, two, one):
        assert list(mine(root, cache=tmp_path / "c").every) == [f"a.py::{root.name}"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [1, 7, 14])
def test_a_cancelled_run_leaves_a_cache_that_gives_the_right_lines(
    tmp_path: Path, after: int, error: type[BaseException]
) -> None:
    edited = Repository(tmp_path)

    def stop(done: int, total: int, path: str) -> None:
        if done == after:
            raise error

    with clock_is_fine():
        for _ in range(2):  # with no cache, and with one of other contents
            with pytest.raises(error):
                mine(edited.root, cache=edited.cache, progress=stop)
            edited.check()
            for path in REPOSITORY:
                text = (edited.root / path).read_text()
                edited.edit("write", path, text.replace("go", "goes").replace("help", "aid"))
        edited.check()


def test_a_run_whose_lines_are_not_read_to_the_end_keeps_nothing(tmp_path: Path) -> None:
    edited = Repository(tmp_path)
    edited.check()
    edited.edit("write", "pkg/deep.py", "def gamma(x):\n    return [x]\n")
    with mine_repository(edited.root, settings(), cache=edited.cache) as mining:
        next(mining.lines())
    edited.check()


# -- since -------------------------------------------------------------------------------------


def git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which three files have changed since."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    root = write(tmp_path / "r", REPOSITORY | {"old.py": b"\x00", "bad.py": b"\x00"})
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    write(
        root,
        {
            "pkg/deep.py": "def gamma(x):\n    return beta(x)\n",
            "new.py": "from pkg.deep import gamma\ndef use(x):\n    return gamma([x, x])\n",
            "bad.py": b"\x00\x00",
        },
    )
    (root / "g/b.go").unlink()
    return root


@pytest.mark.parametrize("caching", ["none", "cold", "warm"])
def test_since_gives_the_lines_of_changed_files_as_the_whole_run_does(
    committed: Path, tmp_path: Path, caching: str
) -> None:
    cache = tmp_path / "c" if caching != "none" else None
    whole = mine(committed, cache=cache if caching == "warm" else None)
    part = mine(committed, since="HEAD", cache=cache)
    changed = {b"new.py", b"pkg/deep.py"}
    for mined, expected in zip(part.lines, whole.lines, strict=True):
        lines = [line for line in expected.splitlines(keepends=True) if path_of(line) in changed]
        assert mined == b"".join(lines)
    assert set(part.every) == {"new.py::<module>", "new.py::use", "pkg/deep.py::gamma"}
    assert part.counts.files == 2
    assert dict(part.counts.skipped) == {"other_language": 2, "binary": 1}
    assert part.every["new.py::use"].dependencies == ["pkg/deep.py::gamma"]
    if cache is not None:  # the next run over all files is as if there had been no other
        same(mine(committed, cache=cache), whole)


def path_of(line: bytes) -> bytes:
    return line.split(b'"path":"', 1)[1].split(b'"', 1)[0]


# -- counts ------------------------------------------------------------------------------------


def test_counts_are_those_of_the_lines(tmp_path: Path) -> None:
    key = "gh" + "p_" + "1a2B3c4D5e6F7g8H9i0J1k2L3m4N5o6P7q8R"
    root = write(
        tmp_path / "r",
        REPOSITORY
        | {
            "secret.py": f'def login(x):\n    """Log in."""\n    return x("{key}", x)\n',
            "broken.py": "def whole(x):\n    return [x, x]\n\n\ndef broken(:\n    return\n",
            "hopeless.py": "((((\n",
            "empty.py": "",
            "undocumented.go": "package u\nfunc F(x int) int { return x * x * x }\n",
            "test_a.py": "def test_it(x):\n    assert [x, x]\n",
            "bin.py": b"x = 1\x00",
        },
    )
    chosen = load_settings(None, {"mining": {"min_tokens": 8, "require_docstring": True}})
    for cache in (None, tmp_path / "c", tmp_path / "c"):
        mined = mine(root, chosen, cache=cache)
        rows, counts = mined.rows, mined.counts
        trained = [row for row in rows if "reasons" not in row]
        assert counts.blocks == len(trained) == mined.blocks.count(b"\n") > 0
        assert counts.languages == Counter(row["language"] for row in trained)
        assert counts.reasons == Counter(why for row in rows for why in row.get("reasons", []))
        only = [row for row in rows if row.get("reasons") == ["no_docstring"]]
        assert counts.undocumented == len(only) > 0
        assert (
            counts.secrets == sum(row["metadata"].get("secrets_redacted", 0) for row in rows) == 1
        )
        assert counts.broken_files == 1
        assert counts.skipped == {"other_language": 2, "syntax_error": 1, "binary": 1}
        assert len(mined.hashes) == counts.files + 2
        assert key.encode() not in mined.blocks + mined.rejected
        mined_paths = {row["path"] for row in rows}
        assert counts.files == len(mined_paths | {"empty.py"})


def test_lines_are_in_order_of_paths_and_positions(tmp_path: Path) -> None:
    mined = mine(write(tmp_path, REPOSITORY))
    for data in mined.lines:
        rows = Mined(data, b"", mined.counts, {}, False).rows
        places = [(row["path"], row["start_byte"], -row["end_byte"]) for row in rows]
        assert places == sorted(places)


# -- the skill ---------------------------------------------------------------------------------


def context(tmp_path: Path, told: list[str], chosen: Settings | None = None) -> SkillContext:
    return SkillContext(
        workspace=Workspace(tmp_path / "forge"),
        settings=chosen or settings(),
        project="p",
        sink=lambda event: told.append(str(event.payload.get("message", ""))),
        cancel=threading.Event(),
    )


def test_extract_gives_the_same_lines_with_its_cache(tmp_path: Path) -> None:
    root = write(tmp_path / "r", REPOSITORY)
    here = context(tmp_path, [])
    for change in ("", "def gamma(x):\n    return [x, x]\n"):
        if change:
            write(root, {"pkg/deep.py": change})
        result = extract(ExtractRequest(repo=str(root)), here)
        expected = mine(root)
        assert (Path(result.path) / "blocks.jsonl").read_bytes() == expected.blocks
        assert (Path(result.path) / "rejected.jsonl").read_bytes() == expected.rejected
        assert result.blocks == expected.counts.blocks
        assert result.rejected == dict(expected.counts.reasons)


def test_extract_since_tells_when_nothing_has_changed(committed: Path, tmp_path: Path) -> None:
    here = context(tmp_path, [])
    result = extract(ExtractRequest(repo=str(committed), since="HEAD"), here)
    assert result.files == 2
    whole = extract(ExtractRequest(repo=str(committed)), here)
    assert whole.corpus_id != result.corpus_id
    git(committed, "add", "-A")
    git(committed, "commit", "-qm", "second")
    with pytest.raises(BadInput, match="No file with code has changed") as caught:
        extract(ExtractRequest(repo=str(committed), since="HEAD"), here)
    assert "older revision" in caught.value.next_step


def test_extract_says_which_option_trains_on_more(tmp_path: Path) -> None:
    root = write(
        tmp_path / "r", REPOSITORY | {"d.py": "def f(x):\n    '''Do.'''\n    return x(1)\n"}
    )
    told: list[str] = []
    result = extract(
        ExtractRequest(repo=str(root), require_docstring=True), context(tmp_path, told)
    )
    assert result.blocks == 1
    (advice,) = result.advice
    assert "--no-require-docstring" in advice
    assert advice in told
    assert extract(ExtractRequest(repo=str(root)), context(tmp_path, told)).advice == []


def test_extract_tells_that_it_does_without_a_cache(tmp_path: Path) -> None:
    root = write(tmp_path / "r", REPOSITORY)
    told: list[str] = []
    here = context(tmp_path, told)
    with mine_repository(root, settings(), cache=here.workspace.home / "cache" / "mining"):
        extract(ExtractRequest(repo=str(root)), here)
    assert any("cache is done without" in line for line in told)
