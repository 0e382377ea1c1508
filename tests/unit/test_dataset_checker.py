"""The examiner of datasets: it finds nothing in ours, and everything in broken ones.

Facts about JavaScript and TypeScript need node and the npm package typescript; its folder is
given in FORGE_TYPESCRIPT. Those cases are run by `pytest -m typescript` (.ci/run does).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dataset_checker import (
    Dataset,
    Findings,
    as_json,
    check_answer,
    check_dataset,
    check_distractors,
    check_documents,
    check_facts,
    check_ids,
    check_leaks,
    check_preferences,
    check_quotes,
    check_rows,
    check_shares,
    near_copies,
    read_corpus,
    read_dataset,
    same_bytes,
)
from dataset_rules import ONE, SEVERAL, Repository, Undecided, holds, items_of
from mining_helpers import mine, settings, write

from forge_mcp.raft import Dataset as Built
from forge_mcp.raft import build_dataset, chat_row
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, DEFAULT_SYSTEM_PROMPT
from forge_mcp.schemas.raft_examples import SPLITS, ChatRow, Fact, RaftExample
from forge_mcp.workspace import write_jsonl

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("documents", "examples", "preferences", *SPLITS)
TYPESCRIPT = Path(os.environ["FORGE_TYPESCRIPT"]) if "FORGE_TYPESCRIPT" in os.environ else None


@dataclass
class Made:
    """A repository, its corpus and its dataset, as files."""

    root: Path
    corpus: Path
    folder: Path

    @property
    def repository(self) -> Repository:
        """What the rules look into."""
        return Repository(self.root, read_corpus(self.corpus), TYPESCRIPT)


def write_dataset(built: Built, folder: Path) -> Path:
    """The files of a dataset, as the skill `synthesize` writes them."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "documents.jsonl", built.documents)
    write_jsonl(folder / "examples.jsonl", built.examples)
    for split in SPLITS:
        write_jsonl(folder / f"{split}.jsonl", built.rows(split, DEFAULT_SYSTEM_PROMPT))
    write_jsonl(folder / "preferences.jsonl", built.preferences)
    return folder


def make(root: Path, work: Path) -> Made:
    """Mine a repository and build its dataset."""
    chosen = settings(include_tests=False)
    mined = mine(root, chosen)
    corpus = work / "corpus"
    corpus.mkdir()
    (corpus / "blocks.jsonl").write_bytes(mined.blocks)
    (corpus / "rejected.jsonl").write_bytes(mined.rejected)
    blocks = [CodeBlock.model_validate_json(line) for line in mined.blocks.splitlines()]
    others = [RejectedBlock.model_validate_json(line) for line in mined.rejected.splitlines()]
    built = build_dataset(blocks, chosen.raft, others=others)
    return Made(root, corpus, write_dataset(built, work / "dataset"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("python")
    root = work / "repository"
    shutil.copytree(FIXTURES / "sample_python_repo", root)
    return make(root, work)


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("languages")
    root = work / "repository"
    shutil.copytree(FIXTURES / "languages", root)
    if TYPESCRIPT is None:
        for path in [*root.glob("*.ts*"), *root.glob("*.js")]:
            path.unlink()
    return make(root, work)


# -- nothing is found in what is built ------------------------------------------------------------


@pytest.mark.parametrize("name", ["python", "languages"])
def test_built_datasets_are_clean(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    found = check_dataset(
        made.folder,
        made.corpus,
        made.root,
        typescript=TYPESCRIPT,
        absent_share=None,  # a few dozen rows: shares of so few are no shares
        closed_book_share=None,
    )
    assert not found.problems, found.table(20)
    plain = ("csharp", "kotlin", "ruby", "php", "scala", "swift", "rust", "cpp", " of c", "bash")
    undecided = [p for p in found.undecided if not p.what.endswith(plain)]
    assert len(undecided) <= 0.01 * found.checked["facts"], found.table(20)
    assert found.checked["facts"] > 100
    assert found.checked["quotes"] > 50
    assert found.checked["preferences"] > 20


def test_two_builds_give_the_same_bytes(python: Made, tmp_path: Path) -> None:
    again = make(python.root, tmp_path)
    assert same_bytes(python.folder, again.folder, [f"{name}.jsonl" for name in NAMES]) == []


def test_other_bytes_are_seen(python: Made, tmp_path: Path) -> None:
    other = shutil.copytree(python.folder, tmp_path / "other")
    with (other / "train.jsonl").open("a") as file:
        file.write("\n")
    assert same_bytes(python.folder, other, ["train.jsonl", "test.jsonl"]) == ["train.jsonl"]


# -- every kind of fact: what is true, and what is not ---------------------------------------------

REPOSITORY: dict[str, str | bytes] = {
    "shop/base.py": '''\
"""Things that can be priced."""

import os
from collections import abc

LIMIT = 20


class Base:
    """Something with a price."""

    def price(self, factor=2):
        """What it costs. It may be scaled."""
        return factor


def check(count, top=LIMIT):
    """Refuse a count that is too high."""
    if count > top:
        raise ValueError(f"{count} is more than {top}")
    return count
''',
    "shop/cart.py": '''\
from shop.base import Base, check


class Cart(Base):
    """A cart.

    Second paragraph.
    """

    @property
    @cached(maxsize=1)
    def total(self) -> float:
        return sum(item.price() for item in self.items)

    def price(self, factor: int = 3, *more: str) -> int:
        """Costs of all."""
        if not self.items:
            return 0
        check(factor, top=9)
        return super().price(factor)
''',
    "tests/test_cart.py": """\
from shop.cart import Cart


def test_cart_price():
    assert Cart().price(1) == 0
""",
    "bank/Account.java": """\
package bank;

import java.util.List;

/** Money of a customer. With care. */
@Entity(name = "a")
public class Account extends Base<Long> implements Audited {
  private static final long LIMIT = 7;

  /** Take money away. */
  @Override
  public List<Long> take(final long amount, String... notes) throws IOException {
    if (amount > LIMIT) {
      throw new LimitException("too much");
    }
    return this.note(amount);
  }

  List<Long> note(long amount) {
    return List.of(amount);
  }
}
""",
    "cache/cache.go": """\
package cache

import (
	"errors"
	"time"
)

const Age = 30

// Get finds a value. It may be old.
func (c *Cache) Get(key string, now time.Time) (int, error) {
	if c.old(key) {
		return 0, ErrOld
	}
	return c.values[key], nil
}

type Cache struct {
	Locker
	values map[string]int
}

type Reader interface {
	Read(key string) int
}
""",
}
SCRIPTS: dict[str, str | bytes] = {
    "src/list.ts": """\
import { Base } from './base';

export const LIMIT = 10;

/** A list of rows. And more. */
export class List<T> extends Base<T> implements Iterable<T> {
  /** Put a row in. */
  add(row: T, at: number = 0): this {
    if (at < 0) {
      throw new RangeError('at');
    }
    this.rows.splice(at, 0, row);
    return this;
  }
}

export const size = (list: List<string>) => list.count();
""",
}
CART, TAKE, GET = (
    "shop/cart.py::Cart",
    "bank/Account.java::Account.take",
    "cache/cache.go::Cache.Get",
)
PRICE, BASE_PRICE, CHECK = f"{CART}.price", "shop/base.py::Base.price", "shop/base.py::check"
TEST, ADD = "tests/test_cart.py::test_cart_price", "src/list.ts::List.add"
# (kind, oracles, subject, true value, false values)
FACTS: list[tuple[str, list[str], str, str, list[str]]] = [
    (
        "signature",
        [PRICE],
        "",
        "`def price(self, factor: int = 3, *more: str) -> int`",
        [
            "`def price(self, factor: int = 3) -> int`",
            "`def price(self, factor: int = 4, *more: str) -> int`",
            "`def prize(self, factor: int = 3, *more: str) -> int`",
            "`not python(`",
        ],
    ),
    ("signature", [CART], "", "`class Cart(Base)`", ["`class Cart`", "`class Card(Base)`"]),
    (
        "signature",
        [TAKE],
        "",
        "`public List<Long> take(final long amount, String... notes) throws IOException`",
        ["`public void take(final long amount)`", "`public List<Long> take(final int amount)`"],
    ),
    (
        "signature",
        [GET],
        "",
        "`func (c *Cache) Get(key string, now time.Time) (int, error)`",
        ["`func (c *Cache) Get(key string) (int, error)`", "`func Get(key string)`"],
    ),
    ("parameters", [PRICE], "", "`factor`, `more`", ["`factor`", "`self`, `factor`, `more`"]),
    ("parameters", [TAKE], "", "`amount`, `notes`", ["`notes`, `amount`", "`amount`"]),
    ("parameters", [GET], "", "`key`, `now`", ["`c`, `key`, `now`", "`key`"]),
    ("default", [PRICE], "factor", "`3`", ["`2`", "`None`"]),
    ("annotation", [PRICE], "factor", "`int`", ["`str`"]),
    ("annotation", [PRICE], "return", "`int`", ["`float`"]),
    ("annotation", [TAKE], "return", "`List<Long>`", ["`List<String>`", "`List`"]),
    ("annotation", [GET], "now", "`time.Time`", ["`string`"]),
    ("decorators", [f"{CART}.total"], "", "`property`, `cached(maxsize=1)`", ["`property`"]),
    ("decorators", [TAKE], "", "`@Override`", ["`@Entity`"]),
    ("raises", [CHECK], "", "`ValueError`", ["`TypeError`", "`ValueError`, `TypeError`"]),
    ("raises", [TAKE], "", "`LimitException`", ["`IOException`", "`Missing`"]),
    ("raises", [GET], "", "`ErrOld`", ["`ErrNew`"]),
    ("guard", [CHECK], "ValueError", "`count > top`", ["`count < top`", "`count`"]),
    ("guard", [TAKE], "LimitException", "`amount > LIMIT`", ["`amount >= LIMIT`"]),
    ("guard", [GET], "ErrOld", "`c.old(key)`", ["`!c.old(key)`"]),
    ("returns", [CHECK], "", "`count`", ["`top`", "`count`, `top`"]),
    (
        "returns",
        [PRICE],
        "",
        "`0`, `super().price(factor)`",
        ["`0`", "`1`, `super().price(factor)`"],
    ),
    ("returns", [GET], "", "`0, ErrOld`, `c.values[key], nil`", ["`c.values[key], nil`"]),
    ("returns_when", [PRICE], "not self.items", "`0`", ["`1`", "`None`"]),
    ("returns_when", [GET], "c.old(key)", "`0, ErrOld`", ["`0, nil`"]),
    ("calls", [PRICE], "", "`check`, `super().price`", ["`check`", "`check`, `go`"]),
    ("calls", [TAKE], "", "`this.note`", ["`note2`", "`this.note`, `List.of`"]),
    ("calls", [GET], "", "`c.old`", ["`c.young`"]),
    ("bases", [CART], "", "`Base`", ["`object`", "`Base`, `Other`"]),
    (
        "bases",
        ["bank/Account.java::Account"],
        "",
        "`Base<Long>`, `Audited`",
        ["`Base<Short>`", "`Audited`", "`Base<Long>`, `Other`"],
    ),
    ("bases", ["cache/cache.go::Cache"], "", "`Locker`", ["`values`"]),
    ("methods", [CART], "", "`total`, `price`", ["`total`", "`total`, `price`, `more`"]),
    ("methods", ["bank/Account.java::Account"], "", "`take`, `note`", ["`take`", "`take`, `x`"]),
    ("methods", ["cache/cache.go::Reader"], "", "`Read`", ["`Write`"]),
    ("imports", ["shop/base.py::<module>"], "", "`os`, `collections`", ["`os`", "`os`, `re`"]),
    ("imports", ["cache/cache.go::<module>"], "", "`errors`, `time`", ["`errors`"]),
    ("imports", ["bank/Account.java::<module>"], "", "`java.util.List`", ["`java.util.Map`"]),
    ("constant", ["shop/base.py::<module>"], "LIMIT", "`20`", ["`21`", "`LIMIT`"]),
    ("constant", ["cache/cache.go::<module>"], "Age", "`30`", ["`31`"]),
    ("constant", ["bank/Account.java::Account"], "LIMIT", "`7`", ["`8`"]),
    ("location", [CHECK], "", "`shop/base.py:17-21`", ["`shop/base.py:17-20`", "`base.py:17-21`"]),
    ("purpose", [CART], "", "A cart.", ["A card.", "cart", "A"]),
    ("purpose", [BASE_PRICE], "", "What it costs.", ["What", "It may be scaled."]),
    ("purpose", [TAKE], "", "Take money away.", ["Take money."]),
    ("purpose", [GET], "", "Get finds a value.", ["Get loses a value."]),
    ("usage", [PRICE], "check", "`check(factor, top=9)`", ["`check(factor)`", "`check(\n1)`"]),
    ("usage", [TAKE], "this.note", "`this.note(amount)`", ["`this.note(1)`"]),
    ("callee_location", [PRICE, CHECK], "check", "`shop/base.py:17-21`", ["`shop/base.py:17-22`"]),
    (
        "callee_signature",
        [PRICE, CHECK],
        "check",
        "`def check(count, top=LIMIT)`",
        ["`def check(count)`"],
    ),
    ("callee_raises", [PRICE, CHECK], "check", "`ValueError`", ["`KeyError`"]),
    ("callee_default", [PRICE, CHECK], "check.top", "`LIMIT`", ["`9`"]),
    (
        "callee_purpose",
        [PRICE, CHECK],
        "check",
        "Refuse a count that is too high.",
        ["Accept any count."],
    ),
    ("base_location", [CART, "shop/base.py::Base"], "Base", "`shop/base.py:9-14`", ["`a.py:1-2`"]),
    ("overrides", [PRICE, BASE_PRICE], "", "`Base.price`", ["`Cart.price`", "`Other.price`"]),
    ("tests", [CART, TEST], "", "`test_cart_price`", ["`test_other`"]),
]
SCRIPT_FACTS: list[tuple[str, list[str], str, str, list[str]]] = [
    ("parameters", [ADD], "", "`row`, `at`", ["`row`"]),
    ("default", [ADD], "at", "`0`", ["`1`"]),
    ("annotation", [ADD], "at", "`number`", ["`string`"]),
    ("annotation", [ADD], "return", "`this`", ["`void`"]),
    ("raises", [ADD], "", "`RangeError`", ["`TypeError`"]),
    ("guard", [ADD], "RangeError", "`at < 0`", ["`at > 0`"]),
    ("returns", [ADD], "", "`this`", ["`null`"]),
    ("calls", [ADD], "", "`this.rows.splice`", ["`this.rows.push`"]),
    (
        "usage",
        [ADD],
        "this.rows.splice",
        "`this.rows.splice(at, 0, row)`",
        ["`this.rows.splice()`"],
    ),
    ("purpose", [ADD], "", "Put a row in.", ["Take a row out."]),
    ("bases", ["src/list.ts::List"], "", "`Base<T>`, `Iterable<T>`", ["`Base<U>`", "`Iterable`"]),
    ("methods", ["src/list.ts::List"], "", "`add`", ["`remove`"]),
    ("imports", ["src/list.ts::<module>"], "", "`./base`", ["`./other`"]),
    ("constant", ["src/list.ts::<module>"], "LIMIT", "`10`", ["`11`"]),
    ("returns", ["src/list.ts::size"], "", "`list.count()`", ["`list`"]),
    (
        "signature",
        [ADD],
        "",
        "`add(row: T, at: number = 0): this`",
        ["`add(row: T): this`", "`add(row: T, at: number = 1): this`"],
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = write(tmp_path_factory.mktemp("small"), REPOSITORY | SCRIPTS)
    return Repository(root, mine(root).every, TYPESCRIPT)


def judged(repository: Repository, kind: str, ids: list[str], subject: str, value: str) -> bool:
    oracles = [repository.blocks[identity] for identity in ids]
    return holds(Fact(kind=kind, block=ids[0], value=value, subject=subject), oracles, repository)


@pytest.mark.parametrize(
    ("kind", "ids", "subject", "true", "false"), FACTS, ids=[f"{f[0]} {f[1][0]}" for f in FACTS]
)
def test_rules_tell_true_from_false(
    small: Repository, kind: str, ids: list[str], subject: str, true: str, false: list[str]
) -> None:
    assert judged(small, kind, ids, subject, true)
    assert [value for value in false if judged(small, kind, ids, subject, value)] == []


@pytest.mark.typescript
@pytest.mark.skipif(TYPESCRIPT is None, reason="FORGE_TYPESCRIPT is not set")
@pytest.mark.parametrize(("kind", "ids", "subject", "true", "false"), SCRIPT_FACTS)
def test_rules_for_scripts(
    small: Repository, kind: str, ids: list[str], subject: str, true: str, false: list[str]
) -> None:
    assert judged(small, kind, ids, subject, true)
    assert [value for value in false if judged(small, kind, ids, subject, value)] == []


def test_every_kind_has_a_rule_that_is_tried() -> None:
    tried = {fact[0] for fact in FACTS} | {"callers", "code"}  # the two below
    assert tried == ONE.keys() | SEVERAL.keys()


def test_code_is_the_whole_definition(small: Repository) -> None:
    source = small.blocks[CHECK].source_code
    assert judged(small, "code", [CHECK], "", source)
    for wrong in (
        source.replace("count > top", "count < top"),
        source[:-20],
        "",
        source + "\nx = 1",
    ):
        assert not judged(small, "code", [CHECK], "", wrong)


def test_callers_are_all_callers(small: Repository) -> None:
    assert judged(small, "callers", [CHECK, PRICE], "", "`Cart.price`")
    assert not judged(small, "callers", [CHECK, PRICE], "", "`Cart.total`")
    assert not judged(small, "callers", [CHECK, f"{CART}.total"], "", "`Cart.total`")
    assert not judged(small, "callers", [CHECK], "", "`Cart.price`")
    # One caller of two is no true answer.
    small.callers[CHECK].add(TEST)
    assert not judged(small, "callers", [CHECK, PRICE], "", "`Cart.price`")
    small.callers[CHECK].remove(TEST)


@pytest.mark.parametrize(
    ("kind", "ids", "subject", "value"),
    [
        ("callee_location", [PRICE, f"{CART}.total"], "check", "`shop/cart.py:10-13`"),
        ("callee_location", [CHECK, PRICE], "price", "`shop/cart.py:15-20`"),
        ("base_location", [CART, BASE_PRICE], "Base", "`shop/base.py:12-14`"),
        ("overrides", [PRICE, f"{CART}.total"], "", "`Cart.total`"),
        ("overrides", [BASE_PRICE, PRICE], "", "`Cart.price`"),
        ("tests", [CART, PRICE], "", "`Cart.price`"),
        ("imagined", [CART], "", "`Base`"),
    ],
)
def test_facts_about_the_wrong_documents(
    small: Repository, kind: str, ids: list[str], subject: str, value: str
) -> None:
    assert not judged(small, kind, ids, subject, value)


def test_a_definition_that_is_not_at_its_lines(small: Repository) -> None:
    block = small.blocks[CHECK]
    moved = block.model_copy(update={"start_line": block.start_line - 6, "end_line": 15})
    fact = Fact(kind="parameters", block=CHECK, value="`count`, `top`")
    assert not holds(fact, [moved], small)


@pytest.mark.parametrize("value", ["no backticks", "`open", "`a` and `b`"])
def test_items_that_cannot_be_read(value: str) -> None:
    with pytest.raises(Undecided):
        items_of(value)


def test_items_with_backticks_inside() -> None:
    assert items_of("`` a`b ``, `c`") == ["a`b", "c"]


# -- broken datasets ------------------------------------------------------------------------------


@dataclass
class Bench:
    """A good dataset in memory, to be broken by hand."""

    dataset: Dataset
    repository: Repository
    found: Findings = field(default_factory=Findings)

    def take(self, where: Callable[[RaftExample], bool]) -> RaftExample:
        """The first example for which something is true."""
        return next(example for example in self.dataset.examples if where(example))

    def render(self) -> None:
        """Chats that fit the examples again."""
        for split in SPLITS:
            self.dataset.rows[split] = [
                chat_row(example, self.dataset.documents)
                for example in self.dataset.examples
                if example.split == split
            ]


@pytest.fixture(scope="module")
def good(python: Made) -> Bench:
    return Bench(read_dataset(python.folder), python.repository)


@pytest.fixture
def bench(good: Bench) -> Bench:
    return Bench(copy.deepcopy(good.dataset), good.repository)


def is_open(example: RaftExample) -> bool:
    return not example.oracle_absent and not example.closed_book


def cites(example: RaftExample) -> bool:
    return is_open(example) and "##begin_quote##" in example.reasoning


def with_distractor(example: RaftExample) -> bool:
    return is_open(example) and bool(example.distractor_ids) and example.fact.kind != "code"


def test_ids(bench: Bench) -> None:
    rows = bench.dataset.examples
    rows[1].id = rows[0].id
    rows[2].oracle_ids = []
    rows[3].distractor_ids = [rows[3].oracle_ids[0]]
    rows[4].distractor_ids = ["nowhere.py::nothing"]
    check_ids(bench.dataset, bench.found)
    assert len(bench.found.problems) == 4
    assert "ids" in bench.found.table()
    assert '"ids": 4' in as_json(bench.found)


@pytest.mark.parametrize(
    "fields",
    [
        {"start_line": 1},
        {"source_code": "def other():\n    pass"},
        {"content_hash": "0" * 64},
        {"id": "nowhere.py::nothing"},
    ],
)
def test_documents(bench: Bench, fields: dict[str, object]) -> None:
    identity = next(i for i, d in bench.dataset.documents.items() if d.start_line > 5)
    changed = bench.dataset.documents.pop(identity).model_copy(update=fields)
    bench.dataset.documents[changed.id] = changed
    check_documents(bench.dataset, bench.repository, bench.found)
    assert bench.found.counts["documents"] >= 1


def test_documents_outside_their_lines(bench: Bench) -> None:
    identity = next(i for i, d in bench.dataset.documents.items() if d.end_line > d.start_line + 2)
    document = bench.dataset.documents[identity]
    changed = document.model_copy(update={"end_line": document.start_line})
    bench.dataset.documents[identity] = changed
    check_documents(bench.dataset, bench.repository, bench.found)
    assert any("stands outside" in problem.what for problem in bench.found.problems)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("##begin_quote##", "##begin_quote##x"),
        ("##end_quote##", ""),
        ("##begin_quote##", ""),
        ("##begin_quote##", "##begin_quote## ##end_quote####begin_quote##"),
    ],
)
def test_quotes(bench: Bench, old: str, new: str) -> None:
    example = bench.take(cites)
    example.reasoning = example.reasoning.replace(old, new, 1)
    check_quotes(bench.dataset, bench.repository, bench.found)
    assert {problem.where for problem in bench.found.problems} == {example.id}


def test_quotes_of_what_is_not_shown(bench: Bench) -> None:
    absent, uncited = bench.take(cites), bench.take(lambda e: e.closed_book)
    absent.oracle_absent = True
    uncited.closed_book = False
    uncited.fact.kind = "location"
    check_quotes(bench.dataset, bench.repository, bench.found)
    assert {problem.where for problem in bench.found.problems} == {absent.id, uncited.id}


def test_quotes_of_other_lines(bench: Bench) -> None:
    example = bench.take(cites)
    for identity in example.oracle_ids:  # the text is there, the lines are not
        document = bench.dataset.documents[identity]
        moved = {"start_line": document.start_line + 1, "end_line": document.end_line + 1}
        bench.dataset.documents[identity] = document.model_copy(update=moved)
    check_quotes(bench.dataset, bench.repository, bench.found)
    assert example.id in {problem.where for problem in bench.found.problems}


def test_lies_of_every_kind(bench: Bench) -> None:
    kinds: dict[str, RaftExample] = {}
    for example in bench.dataset.examples:
        if not example.oracle_absent:
            kinds.setdefault(example.fact.kind, example)
    for example in kinds.values():
        value = example.fact.value
        prose = example.fact.kind in ("purpose", "callee_purpose", "code")
        lie = f"Never. {value}" if prose else value.replace("`", "`no_", 1)
        example.final_answer = example.final_answer.replace(value, lie)
        example.fact.value = lie
    check_facts(bench.dataset, bench.repository, bench.found)
    lying = {example.id for example in kinds.values()}
    assert {problem.where.split()[0] for problem in bench.found.problems} == lying
    assert len(kinds) >= 12


def test_facts_about_nothing(bench: Bench) -> None:
    first = bench.take(lambda e: e.fact.kind == "location")
    first.fact.block = "nowhere.py::nothing"
    second = bench.take(lambda e: e.fact.kind == "parameters")
    second.fact.block = next(i for i in bench.repository.blocks if i not in second.oracle_ids)
    third = bench.take(lambda e: e.fact.kind == "signature")
    third.fact.value = "no backticks"
    check_facts(bench.dataset, bench.repository, bench.found)
    assert {problem.where for problem in bench.found.problems} == {first.id, second.id}
    assert [problem.where for problem in bench.found.undecided] == [third.id]
    assert 0 < bench.found.undecided_share < 1


def test_answers(bench: Bench) -> None:
    abstaining, other = bench.take(is_open), bench.take(lambda e: e.oracle_absent)
    abstaining.final_answer = ABSTAIN_ANSWER
    other.oracle_absent = False
    other.final_answer = "`something else`"
    for example in (abstaining, other):
        check_answer(example, bench.found)
    assert bench.found.counts["answers"] == 2


def plant_distractor(bench: Bench, example: RaftExample, other: CodeBlock) -> list[str]:
    """What the check says of one more document among the distractors."""
    bench.dataset.documents[other.id] = other
    example.distractor_ids[0] = other.id
    check_distractors(bench.dataset, bench.repository, bench.found)
    return [p.what for p in bench.found.problems if p.where.startswith(example.id)]


def test_a_distractor_that_is_the_oracle(bench: Bench) -> None:
    example = bench.take(with_distractor)
    said = plant_distractor(bench, example, bench.dataset.documents[example.oracle_ids[0]])
    assert "is an oracle" in said[0]


def test_a_distractor_that_holds_the_oracle(bench: Bench) -> None:
    example = bench.take(lambda e: with_distractor(e) and e.fact.kind == "parameters")
    block = bench.repository.blocks[example.fact.block]
    copied = block.model_copy(update={"id": "copy.py::copy", "path": "copy.py", "name": "copy"})
    said = plant_distractor(bench, example, copied)
    assert "holds the text" in said[0]


def test_a_distractor_that_shows_the_oracle(bench: Bench) -> None:
    example = bench.take(lambda e: with_distractor(e) and e.fact.kind == "parameters")
    block = bench.repository.blocks[example.fact.block]
    skeleton = block.model_copy(
        update={
            "id": f"{block.path}::Outer",
            "block_type": "class",
            "name": "Outer",
            "qualified_name": "Outer",
            "source_code": f"class Outer:\n    {block.signature}: ...",
        }
    )
    assert "with its lines around" in plant_distractor(bench, example, skeleton)[0]


def test_a_distractor_of_the_same_name(bench: Bench) -> None:
    example = bench.take(lambda e: with_distractor(e) and e.fact.kind == "parameters")
    block = bench.repository.blocks[example.fact.block]
    twin = block.model_copy(
        update={"id": "twin.py::twin", "path": "twin.py", "source_code": "def twin(): ..."}
    )
    assert "the question does not say which" in plant_distractor(bench, example, twin)[0]


def test_a_distractor_that_states_the_same(tmp_path: Path) -> None:
    text = "class {}:\n    def run(self, count, *, fast=True):\n        return {}\n"
    root = write(tmp_path, {"a.py": text.format("A", "count"), "b.py": text.format("B", "fast")})
    repository = Repository(root, mine(root).every)
    first, second = (repository.blocks[i] for i in ("a.py::A.run", "b.py::B.run"))

    def problems(kind: str, value: str, subject: str = "") -> int:
        example = RaftExample(
            id="ex-1",
            question="What of `A.run`?",
            oracle_ids=[first.id],
            distractor_ids=[second.id],
            reasoning="",
            final_answer=value,
            difficulty="medium",
            fact=Fact(kind=kind, block=first.id, value=value, subject=subject),
            split="train",
        )
        documents = {first.id: first, second.id: second}
        found = Findings()
        check_distractors(Dataset(documents, [example], {}, []), repository, found)
        return len(found.problems)

    assert problems("parameters", "`count`, `fast`") == 1
    assert problems("default", "`True`", "fast") == 1
    assert problems("returns", "`count`") == 0
    assert problems("location", "`a.py:2-3`") == 0


def test_callers_tests_and_calls_among_distractors(small: Repository) -> None:
    documents = dict(small.blocks)

    def said(
        kind: str, oracle: str, other: str, value: str, question: str, subject: str = ""
    ) -> str:
        example = RaftExample(
            id="ex-1",
            question=question,
            oracle_ids=[oracle],
            distractor_ids=[other],
            reasoning="",
            final_answer=value,
            difficulty="medium",
            fact=Fact(kind=kind, block=oracle, value=value, subject=subject),
            split="train",
        )
        found = Findings()
        check_distractors(Dataset(documents, [example], {}, []), small, found)
        return "".join(problem.what for problem in found.problems)

    assert "calls" in said("callers", CHECK, PRICE, "`x`", "Who calls `check`?")
    assert "is a test" in said("tests", CART, TEST, "`x`", "What tests `Cart`?")
    call = "`check(factor, top=9)`"
    asked = "Write a call of `check`."
    assert "makes the same call" in said("usage", f"{CART}.total", PRICE, call, asked, "check")
    assert not said("location", CHECK, BASE_PRICE, "`shop/base.py:17-21`", "Where is `check`?")


def test_rows(bench: Bench) -> None:
    rows = bench.dataset.rows["train"]
    trained = [example for example in bench.dataset.examples if example.split == "train"]
    number = next(n for n, example in enumerate(trained) if len(example.distractor_ids) > 1)
    trained[number].distractor_ids.pop()
    rows[number + 1].messages[1].content += " "
    rows[number + 2].messages[2].content += " "
    rows[number + 3] = ChatRow(messages=rows[number + 3].messages[1:])
    rows.pop()
    check_rows(bench.dataset, bench.found)
    said = " ".join(problem.what for problem in bench.found.problems if problem.check == "rows")
    for part in ("are claimed", "user's turn", "assistant's turn", "not a system", "chats for"):
        assert part in said


def test_difficulty(bench: Bench) -> None:
    easy = bench.take(lambda e: e.difficulty == "easy" and is_open(e))
    medium = bench.take(lambda e: e.difficulty == "medium" and is_open(e))
    closed, absent = bench.take(lambda e: e.closed_book), bench.take(lambda e: e.oracle_absent)
    second = bench.take(lambda e: e.difficulty == "easy" and is_open(e) and e.id != easy.id)
    easy.difficulty, medium.difficulty = "hard", "easy"
    closed.distractor_ids, absent.distractor_ids = ["x"], []
    second.oracle_ids = [*second.oracle_ids, "another"]
    check_rows(bench.dataset, bench.found)
    wrong = {problem.where for problem in bench.found.problems if problem.check == "difficulty"}
    assert wrong == {easy.id, medium.id, closed.id, absent.id, second.id}


def test_shares(bench: Bench) -> None:
    check_shares(bench.dataset, bench.found, 0.9, 0.9)
    assert bench.found.counts["shares"] == 2
    few = Findings()
    bench.dataset.examples = bench.dataset.examples[:50]
    check_shares(bench.dataset, few, 0.9, 0.9)
    assert not few.problems


def test_a_file_in_two_splits(bench: Bench) -> None:
    example = bench.take(lambda e: is_open(e) and e.split == "train")
    example.split = "test"
    check_leaks(bench.dataset, bench.repository, bench.found)
    assert bench.found.counts["leaks: files"] >= 1


def test_questions_in_two_splits(bench: Bench) -> None:
    trained = bench.take(lambda e: e.split == "train")
    held, other = [e for e in bench.dataset.examples if e.split != "train"][:2]
    held.question = trained.question
    held.split, other.split = "valid", "test"
    third = next(e for e in bench.dataset.examples if e.split == "test" and e is not other)
    third.question = f" {other.question} " if other.split != third.split else third.question
    closed = bench.take(lambda e: e.closed_book)
    closed.fact.block = "nowhere.py::nothing"
    closed.oracle_ids = [closed.fact.block]
    closed.split = "test"
    check_leaks(bench.dataset, bench.repository, bench.found)
    said = [p for p in bench.found.problems if p.check == "leaks: questions"]
    assert held.id in {problem.where for problem in said}
    assert closed.id in {p.where for p in bench.found.problems if p.check == "leaks: closed book"}


def test_near_copies_across_splits(bench: Bench) -> None:
    one = bench.take(lambda e: is_open(e) and e.split == "train" and e.fact.kind == "signature")
    block = bench.repository.blocks[one.fact.block]
    copied = block.model_copy(update={"id": "copy.py::copy", "path": "copy.py"})
    blocks = {**bench.repository.blocks, copied.id: copied}
    repository = Repository(bench.repository.root, blocks)
    held = one.model_copy(
        update={
            "id": "ex-held",
            "split": "test",
            "oracle_ids": [copied.id],
            "fact": one.fact.model_copy(update={"block": copied.id}),
        }
    )
    bench.dataset.examples.append(held)
    check_leaks(bench.dataset, repository, bench.found)
    assert bench.found.counts["leaks: code"] >= 1
    assert bench.found.counts["leaks: questions"] == 1


def test_near_copies_are_all_pairs() -> None:
    words = [f"w{number}" for number in range(60)]
    texts = {
        "whole": " ".join(words),
        "alike": " ".join([*words, "more"]),
        "half": " ".join(words[:30]),
        "short": "a b",
        "twin": "a  b",
    }
    pairs = {(one, other) for one, other, _ in near_copies(texts)}
    assert pairs == {("whole", "alike"), ("short", "twin")}


def test_preferences(bench: Bench) -> None:
    pairs = bench.dataset.preferences
    pairs[0].prompt += "?"
    pairs[1].chosen = pairs[1].chosen.replace("<ANSWER>: ", "<ANSWER>: not ")
    pairs[2].rejected = pairs[2].chosen
    pairs[3].rejected = "<ANSWER>:"
    check_preferences(bench.dataset, bench.repository, bench.found)
    wrong = sorted({int(problem.where.split()[1]) for problem in bench.found.problems})
    assert wrong == [0, 1, 2, 3]


def test_a_rejected_answer_that_is_true(bench: Bench) -> None:
    number, pair = next(
        (n, pair)
        for n, pair in enumerate(bench.dataset.preferences)
        if pair.fact.kind == "parameters" and ABSTAIN_ANSWER not in pair.chosen + pair.rejected
    )
    example = bench.take(lambda e: e.fact == pair.fact and is_open(e))
    # The same names in other words: true, whatever it looks like.
    twisted = example.fact.value.replace("`, `", "` , `").replace("` , `", "`, `*", 1)
    if "`, `" not in example.fact.value:
        twisted = example.fact.value.replace("`", "`*", 1)
    before, _, _ = pair.chosen.rpartition("<ANSWER>:")
    pair.rejected = f"{before}<ANSWER>: {twisted}"
    check_preferences(bench.dataset, bench.repository, bench.found)
    assert [p.where.split()[1] for p in bench.found.problems] == [str(number)]
    assert "is true" in bench.found.problems[0].what
