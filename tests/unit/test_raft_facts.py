"""Facts: what is derived from code in several languages, and that nothing else is."""

# ruff: noqa: E501 (tables of one fact a line)

from __future__ import annotations

from collections.abc import Callable, Iterator

import fact_sources
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mining_helpers import mine, settings, write

from forge_mcp.raft import verify
from forge_mcp.raft.facts import (
    KINDS,
    MAX_CODE,
    MAX_VALUE,
    RELATED_KINDS,
    CorpusIndex,
    derive,
    derive_kind,
    fact_value,
    first_sentence,
    make_fact,
    value_items,
)
from forge_mcp.raft.scan import Code, closing, mask
from forge_mcp.raft.verify import answers, check
from forge_mcp.raft.verify_text import opening_sentence
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.raft_examples import Fact

LANGUAGES = ("PYTHON", "JAVASCRIPT", "TYPESCRIPT", "GO", "JAVA", "OTHERS", "EDGES")
Corpus = tuple[dict[str, CodeBlock], dict[str, RejectedBlock]]
Mine = Callable[..., Corpus]


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Mine:
    """Mine files: (what is trained on, what is rejected), by id."""

    def mined(files: dict[str, str], **chosen: object) -> Corpus:
        root = write(tmp_path_factory.mktemp("repository"), dict(files))
        found = mine(root, settings(**{"include_tests": False, **chosen}))
        blocks = [CodeBlock.model_validate_json(line) for line in found.blocks.splitlines()]
        others = [RejectedBlock.model_validate_json(line) for line in found.rejected.splitlines()]
        return {block.id: block for block in blocks}, {block.id: block for block in others}

    return mined


@pytest.fixture(scope="module")
def corpora(mined: Mine) -> dict[str, Corpus]:
    return {name: mined(getattr(fact_sources, name)) for name in LANGUAGES}


@pytest.fixture(scope="module")
def blocks(corpora: dict[str, Corpus]) -> dict[str, CodeBlock]:
    return {
        block_id: block
        for trained, others in corpora.values()
        for block_id, block in [*trained.items(), *others.items()]
    }


@pytest.fixture(scope="module")
def everything(corpora: dict[str, Corpus]) -> list[tuple[Fact, list[CodeBlock]]]:
    """Every fact of every repository with its oracles."""
    return [
        pair
        for trained, others in corpora.values()
        for pair in _all(CorpusIndex(trained.values(), others.values()), trained, others)
    ]


def _all(
    index: CorpusIndex, trained: dict[str, CodeBlock], others: dict[str, RejectedBlock]
) -> Iterator[tuple[Fact, list[CodeBlock]]]:
    for block in [*trained.values(), *others.values()]:
        for fact in derive(block):
            yield fact, [block]
    for block in trained.values():
        yield from index.related(block)


def stated(block: CodeBlock, kind: str) -> dict[str, str]:
    """Subject → value of the facts of a kind that are derived and confirmed."""
    return {f.subject: f.value for f in derive_kind(block, kind) if check(f, [block])}


# What is true, written by hand: id, kind, subject → value. An empty dict: nothing is certain.
TRUE: list[tuple[str, str, dict[str, str]]] = [
    # -- Python
    ("shop/prices.py::parse_price", "parameters", {"": "`text`, `currency`, `rest`, `strict`, `more`"}),
    ("shop/prices.py::parse_price", "default", {"currency": '`"EUR"`', "strict": "`None`"}),
    ("shop/prices.py::parse_price", "annotation", {"text": "`str`", "currency": "`str`", "rest": "`int`", "return": "`float`"}),
    ("shop/prices.py::parse_price", "raises", {"": "`ValueError`, `CartFull`"}),
    ("shop/prices.py::parse_price", "guard", {"ValueError": "`not text`", "CartFull": "`currency not in RATES`"}),
    ("shop/prices.py::parse_price", "returns", {"": "`0.0`, `-1.0`, `round(float(text), 2)`"}),
    ("shop/prices.py::parse_price", "returns_when", {'text == "free"': "`0.0`", "part < 0": "`-1.0`"}),
    ("shop/prices.py::parse_price", "calls", {}),  # `", ".join(…)` has no name
    ("shop/prices.py::parse_price", "purpose", {"": "Read a price, e.g. 12.50 EUR, from a text."}),
    ("shop/prices.py::parse_price", "usage", {"round": "`round(float(text), 2)`", "float": "`float(text)`"}),
    ("shop/prices.py::reraised", "raises", {}),  # one is caught where it is raised
    ("shop/prices.py::passed_on", "raises", {}),  # a caught one is passed on
    ("shop/prices.py::variable_raise", "raises", {}),
    ("shop/prices.py::chained", "calls", {}),
    ("shop/prices.py::nested", "raises", {}),  # an inner function does
    ("shop/prices.py::nested", "calls", {}),
    ("shop/prices.py::nested", "returns", {"": "`inner`"}),
    ("shop/prices.py::generate", "returns", {}),
    ("shop/prices.py::generate", "returns_when", {}),
    ("shop/prices.py::elses", "guard", {}),  # their conditions alone do not say when
    ("shop/prices.py::elses", "returns_when", {}),
    ("shop/prices.py::elses", "raises", {"": "`LookupError`, `TypeError`"}),
    ("shop/prices.py::total", "decorators", {"": "`@cached(maxsize=10)`"}),
    ("shop/prices.py::total", "calls", {"": "`sum`, `parse_price`"}),
    ("shop/prices.py::<module>", "imports", {"": "`re`, `shop.errors`, `.`"}),
    ("shop/prices.py::<module>", "constant", {"CURRENCY": '`"EUR"`', "RATES": '`{"EUR": 1.0}`'}),
    ("shop/prices.py::<module>", "location", {}),
    ("shop/prices.py::<module>", "purpose", {"": "Prices of everything that is sold."}),
    ("shop/cart.py::Cart", "methods", {"": "`__init__`, `empty`, `sum`, `add`, `check_room`"}),
    ("shop/cart.py::Cart", "constant", {"LIMIT": "`20`"}),
    ("shop/cart.py::Cart", "location", {"": "`shop/cart.py:4-36`"}),
    ("shop/cart.py::Cart.empty", "parameters", {"": "`size`"}),
    ("shop/cart.py::Cart.check_room", "guard", {"OverflowError": "`count > self.limit`"}),
    ("shop/errors.py::CartFull", "bases", {"": "`ShopError`"}),
    ("shop/errors.py::CartFull.explain", "calls", {"": "`super().explain`"}),
    ("shop/errors.py::ShopError", "constant", {"CODE": "`7`", "RETRIES": "`3`"}),
    # -- JavaScript
    ("lib/view.js::<module>", "imports", {"": "`node:path`, `fs`"}),
    ("lib/view.js::<module>", "constant", {"LIMIT": "`10`", "NAME": "`'view'`"}),
    ("lib/view.js::render", "signature", {"": "`function render(name, options = {}, ...rest)`"}),
    ("lib/view.js::render", "default", {"options": "`{}`"}),
    ("lib/view.js::render", "raises", {"": "`TypeError`"}),
    ("lib/view.js::render", "guard", {"TypeError": "`!name`"}),
    ("lib/view.js::render", "returns_when", {"options.raw": "`name`", "one === null": "`null`"}),
    ("lib/view.js::render", "calls", {"": "`path.join`, `lookup`"}),
    ("lib/view.js::render", "usage", {"path.join": "`path.join(LIMIT, lookup(name, 'x'))`", "lookup": "`lookup(name, 'x')`"}),
    ("lib/view.js::render", "purpose", {"": "Render a view with its options."}),
    ("lib/view.js::lookup", "raises", {}),
    ("lib/view.js::shout", "returns", {"": "`text.toUpperCase()`"}),
    ("lib/view.js::single", "parameters", {"": "`text`"}),
    ("lib/view.js::counter", "returns", {}),
    ("lib/view.js::counter", "returns_when", {}),
    ("lib/view.js::odd", "raises", {}),
    ("lib/view.js::odd", "guard", {}),
    ("lib/view.js::odd", "calls", {}),
    ("lib/view.js::Base", "methods", {"": "`open`, `check`, `later`"}),
    ("lib/view.js::Derived", "bases", {"": "`Base`"}),
    ("lib/view.js::Derived.constructor", "calls", {}),  # another constructor
    ("lib/view.js::Base.close", "raises", {}),
    ("lib/view.js::Base.close", "calls", {"": "`shout`"}),
    # -- TypeScript
    ("src/geo.ts::<module>", "imports", {"": "`fs`, `./point`, `./data.json`, `./other`"}),
    ("src/geo.ts::<module>", "constant", {"PRECISION": "`6`", "HIDDEN": "`'x'`"}),
    ("src/geo.ts::Shape", "bases", {"": "`Solid<number>`, `Thing`"}),
    ("src/geo.ts::Shape", "methods", {"": "`area`"}),
    ("src/geo.ts::Figure", "bases", {"": "`Shape`, `Solid<T>`"}),
    ("src/geo.ts::Figure", "methods", {"": "`measure`, `scale`, `with`"}),
    ("src/geo.ts::Figure.scale", "parameters", {"": "`by`, `offset`, `more`"}),
    ("src/geo.ts::Figure.scale", "default", {"by": "`2`"}),
    ("src/geo.ts::Figure.scale", "annotation", {"by": "`number`", "offset": "`Point`", "more": "`number[]`", "return": "`Figure<T>`"}),
    ("src/geo.ts::Figure.scale", "guard", {"RangeError": "`by === 0`"}),
    ("src/geo.ts::Figure.with", "parameters", {"": "`by`, `offset`"}),
    ("src/geo.ts::Figure.measure", "purpose", {"": "Measure the figure in some unit."}),
    ("src/geo.ts::Circle", "decorators", {"": "`@Component({tag: 'x-circle'})`"}),
    ("src/geo.ts::Circle", "bases", {"": "`Figure`"}),
    ("src/geo.ts::Circle.scale", "decorators", {"": "`@Memo(10)`"}),
    ("src/geo.ts::Circle.scale", "usage", {"Circle": "`new Circle(by * this.radius)`"}),
    ("src/geo.ts::load", "signature", {"": "`export async function load(path: string): Promise<string>`"}),
    ("src/view.tsx::View", "annotation", {"props": "`{name: string}`", "return": "`JSX.Element`"}),
    # -- Go
    ("pkg/server.go::<module>", "imports", {"": "`errors`, `net/http`"}),
    ("pkg/server.go::<module>", "constant", {"Limit": "`10`"}),
    ("pkg/server.go::<module>", "purpose", {"": "Package server answers requests."}),
    ("pkg/server.go::Server", "bases", {"": "`web.Handler`"}),
    ("pkg/server.go::Runner", "methods", {"": "`Run`, `Stop`"}),
    ("pkg/server.go::Server.Start", "raises", {"": "`ErrClosed`"}),
    ("pkg/server.go::Server.Start", "guard", {"ErrClosed": "`port == 0`"}),
    ("pkg/server.go::Server.Start", "returns_when", {"port == 0": "`0, ErrClosed`", 'host == ""': "`1, nil`"}),
    ("pkg/server.go::Server.Start", "annotation", {"port": "`int`", "return": "`(int, error)`"}),
    ("pkg/server.go::Server.Start", "calls", {"": "`s.check`"}),
    ("pkg/server.go::newError", "raises", {}),
    ("pkg/server.go::newError", "guard", {"panic": "`port < 0`"}),
    ("pkg/server.go::newError", "calls", {"": "`panic`, `errors.New`"}),
    ("pkg/server.go::newError", "usage", {"errors.New": "`errors.New(string(text))`"}),
    ("pkg/server.go::closing", "raises", {}),
    ("pkg/server.go::hook", "parameters", {"": "`name`"}),
    # -- Java
    ("src/main/java/shop/Cart.java::<module>", "imports", {"": "`java.util.List`, `java.util.Objects.requireNonNull`, `java.io.*`"}),
    ("src/main/java/shop/Cart.java::Cart", "bases", {"": "`Basket<Item>`, `Closeable`, `Iterable<Item>`"}),
    ("src/main/java/shop/Cart.java::Cart", "methods", {"": "`Cart`, `add`, `count`, `close`, `lengths`, `pick`"}),
    ("src/main/java/shop/Cart.java::Cart", "constant", {"LIMIT": "`20`"}),
    ("src/main/java/shop/Cart.java::Cart", "purpose", {"": "A cart that holds items."}),
    ("src/main/java/shop/Cart.java::Cart.Cart", "calls", {}),
    ("src/main/java/shop/Cart.java::Cart.Cart", "annotation", {"owner": "`String`"}),
    ("src/main/java/shop/Cart.java::Cart.add", "decorators", {"": '`@Override`, `@Deprecated(since = "2")`'}),
    ("src/main/java/shop/Cart.java::Cart.add", "annotation", {"item": "`Item`", "return": "`int`"}),
    ("src/main/java/shop/Cart.java::Cart.add", "raises", {}),  # a caught one is passed on
    ("src/main/java/shop/Cart.java::Cart.add", "guard", {"NullPointerException": "`item == null`"}),
    ("src/main/java/shop/Cart.java::Cart.add", "returns_when", {"open > LIMIT": "`LIMIT`"}),
    ("src/main/java/shop/Cart.java::Cart.count", "raises", {}),
    ("src/main/java/shop/Cart.java::Cart.count", "calls", {}),
    ("src/main/java/shop/Cart.java::Cart.close", "calls", {}),
    ("src/main/java/shop/Cart.java::Cart.lengths", "calls", {}),
    ("src/main/java/shop/Cart.java::Cart.pick", "calls", {"": "`all.get`"}),
    ("src/main/java/shop/Cart.java::Level", "methods", {"": "`weight`"}),
    ("src/main/java/shop/Cart.java::Level", "constant", {"TOP": "`9`"}),
    # -- languages without deep facts
    ("lib/cart.rb::Cart.add", "signature", {"": "`def add(item, count = 1)`"}),
    ("lib/cart.rb::Cart.add", "parameters", {"": "`item`, `count`"}),
    ("lib/cart.rb::Cart.add", "purpose", {"": "Put an item into the cart."}),
    ("lib/cart.rb::Cart.add", "calls", {}),
    ("lib/cart.rb::Cart.add", "default", {}),
    ("src/cart.rs::add", "signature", {"": "`pub fn add(cart: &mut Cart, name: &'static str) -> usize`"}),
    ("src/cart.rs::add", "parameters", {"": "`cart`, `name`"}),
    ("src/cart.rs::add", "calls", {"": "`check`, `cart.len`"}),
    ("src/cart.c::count", "parameters", {"": "`cart`, `limit`"}),
    ("src/cart.c::count", "calls", {}),  # a cast before a parenthesis
    ("src/cart.c::count", "purpose", {"": "Counts the items of a cart."}),
    ("src/cart.cc::Cart.Cart", "signature", {"": "`Cart::Cart(int room, std::string owner)`"}),
    ("src/cart.cc::Cart.Cart", "parameters", {"": "`room`, `owner`"}),
    ("src/Cart.cs::Cart.Add", "signature", {"": "`public int Add(string item, int count = 1)`"}),
    ("src/Cart.cs::Cart.Add", "calls", {"": "`Check`, `this.Items.Add`"}),
    ("src/Cart.cs::Cart.Add", "purpose", {"": "Adds an item to Cart at once."}),
    ("src/cart.php::Cart.add", "parameters", {"": "`$item`, `$count`"}),
    ("src/cart.php::Cart.add", "calls", {"": "`$this->check`, `count`"}),
    ("src/Cart.kt::add", "signature", {"": "`fun add(item: String, count: Int = 1): Int`"}),
    ("bin/cart.sh::add_item", "purpose", {"": "Adds an item to the cart."}),
    # -- what is easily read wrongly
    ("edges/calls.py::default_calls", "calls", {}),  # one is called when it is defined
    ("edges/calls.py::default_calls", "usage", {"when.lower": "`when.lower(1)`"}),
    ("edges/calls.py::dotted_error", "raises", {}),  # through an attribute
    ("edges/calls.py::dotted_error", "guard", {"socket.error": "`not name`", "LookupError": "`name == 1`"}),
    ("edges/calls.py::again", "usage", {"print": "`print(lambda: name(1))`"}),
    ("edges/calls.py::twice", "raises", {"": "`ValueError`"}),
    ("edges/calls.py::twice", "guard", {}),
    ("edges/calls.py::twice", "returns_when", {}),
    ("edges/calls.py::bare", "raises", {}),
    ("edges/calls.py::bare", "returns_when", {}),
    ("edges/calls.py::Holder", "methods", {"": "`one`, `other`, `two`, `three`, `shadowed`, `static`, `module`"}),
    ("edges/calls.py::<module>", "imports", {"": "`socket`, `extra`"}),
    ("edges/calls.js::<module>", "imports", {}),  # one is required within an expression
    ("edges/calls.js::<module>", "constant", {"one": "`require('one').two`"}),
    ("edges/calls.js::patterns", "parameters", {}),
    ("edges/calls.js::patterns", "signature", {}),
    ("edges/calls.js::templates", "calls", {}),
    ("edges/calls.js::thrower", "calls", {"": "`makeError`"}),
    ("edges/calls.js::thrower", "raises", {}),
    ("edges/calls.js::thrower", "returns_when", {}),
    ("edges/calls.js::generator", "returns", {}),
    ("edges/calls.js::raised", "raises", {}),
    ("edges/calls.js::raised", "guard", {}),
    ("edges/calls.js::Odd", "bases", {"": "`mixin(Object)`"}),
    # -- what is raised again
    ("again/pool.py::handle", "raises", {}),
    ("again/pool.py::handle", "guard", {"RuntimeError": "`not request`"}),
    ("again/pool.py::silent", "raises", {}),
    ("again/pool.py::given", "raises", {}),
    ("again/pool.py::assigned", "raises", {}),
    ("again/pool.py::capital", "raises", {}),
    ("again/pool.py::kept", "raises", {}),
    ("again/pool.py::caught", "raises", {}),
    ("again/pool.py::wrapped", "raises", {"": "`RuntimeError`, `OSError`"}),
    ("again/pool.ts::handle", "raises", {}),
    ("again/pool.ts::handle", "guard", {"RangeError": "`!url`"}),
    ("again/pool.ts::given", "raises", {}),
    ("again/pool.ts::capital", "raises", {}),
    ("again/pool.ts::texts", "raises", {}),
    ("again/pool.ts::wrapped", "raises", {"": "`TypeError`, `RangeError`"}),
    ("again/Pool.java::Pool.handle", "raises", {}),
    ("again/Pool.java::Pool.given", "raises", {}),
    ("again/Pool.java::Pool.wrapped", "raises", {"": "`IllegalStateException`"}),
    ("again/pool.py::sections", "purpose", {}),
    ("again/pool.py::underlined", "purpose", {}),
    ("again/pool.py::handle", "purpose", {"": "Returns what the request gives."}),
    ("again/pool.ts::handle", "purpose", {}),
    ("edges/types.ts::<module>", "imports", {"": "`fs`"}),
    ("edges/types.ts::Box", "methods", {"": "`overloaded`, `constructor`, `area`, `callback`"}),
    ("edges/types.ts::Box.callback", "signature", {}),
    ("edges/types.ts::Box.constructor", "parameters", {"": "`side`, `other`"}),
    ("edges/calls.go::Reader", "bases", {"": "`io.Reader`"}),
    ("edges/calls.go::Pair", "bases", {"": "`Base`"}),
    ("edges/calls.go::A", "bases", {"": "`B`"}),
    ("edges/calls.go::reading", "raises", {}),  # one is returned through a variable
    ("edges/calls.go::reading", "guard", {"io.EOF": "`n == 1`"}),
    ("edges/calls.go::reading", "returns_when", {"err != nil": "`0, err`"}),
    ("edges/calls.go::sentinel", "raises", {"": "`ErrLarge`, `pkg.ErrSmall`"}),
    ("edges/calls.go::unnamed", "parameters", {}),
    ("edges/calls.go::two", "parameters", {"": "`a`"}),
    ("edges/Calls.java::Calls", "constant", {"X": "`Math.max(1, 2)`"}),
    ("edges/Calls.java::Calls.types", "parameters", {"": "`all`, `count`"}),
    ("edges/Calls.java::Calls.types", "annotation", {"all": "`List<? extends E>`", "return": "`E`"}),
    ("edges/Calls.java::Calls.types", "raises", {}),
    ("edges/Calls.java::Calls.types", "calls", {}),
    ("edges/Calls.java::Calls.types", "guard", {"Error": "`count == null`"}),
    ("edges/Calls.java::Calls.types", "returns_when", {"all == null": "`null`", "e != null": "`e`"}),
    ("edges/Calls.java::Calls.classes", "raises", {}),
    ("edges/Calls.java::Calls.classes", "calls", {}),
    ("edges/Calls.java::Calls.hash", "calls", {}),
    ("edges/Calls.java::Calls.plain", "usage", {}),  # an anonymous class
    ("edges/Calls.java::Calls.Nested", "constant", {"INNER": "`1`"}),
    ("edges/Calls.java::Calls.Point.Point", "raises", {"": "`IllegalStateException`"}),
    ("edges/Calls.java::Calls.Mark", "methods", {"": "`value`"}),
    ("edges/text.c::TWICE", "signature", {}),
    ("edges/text.c::pointer", "parameters", {}),
    ("edges/text.rs::generic", "parameters", {"": "`value`, `pair`"}),
    ("edges/text.rs::generic", "calls", {}),
    ("edges/text.rb::Text.==", "parameters", {"": "`other`"}),
    ("edges/text.rb::Text.keyed", "parameters", {"": "`name`, `size`, `more`"}),
    ("edges/text.php::adder", "calls", {}),
    ("edges/text.php::adder", "purpose", {"": "Adds what is given."}),
    ("edges/text.php::hashed", "purpose", {}),
    ("edges/Text.cs::Text.operator ==", "signature", {"": "`public static Text operator ==(Text a, Text b)`"}),
    ("edges/text.kt::property", "signature", {}),
]  # fmt: skip


@pytest.mark.parametrize(("block_id", "kind", "facts"), TRUE)
def test_what_is_true(
    blocks: dict[str, CodeBlock], block_id: str, kind: str, facts: dict[str, str]
) -> None:
    assert stated(blocks[block_id], kind) == facts


def test_every_derived_fact_is_derived_again(
    everything: list[tuple[Fact, list[CodeBlock]]],
) -> None:
    failed = [
        (fact, [o.id for o in oracles]) for fact, oracles in everything if not check(fact, oracles)
    ]
    assert failed == []
    assert {fact.kind for fact, _ in everything} == {*KINDS, *RELATED_KINDS}


RELATED_TRUE = {
    ("shop/errors.py::CartFull", "base_location", "ShopError"): "`shop/errors.py:4-12`",
    ("shop/errors.py::CartFull.explain", "overrides", "explain"): "`ShopError.explain`",
    ("shop/errors.py::CartFull.explain", "callee_default", "explain.verbose"): "`False`",
    ("shop/prices.py::total", "callee_raises", "parse_price"): "`ValueError`, `CartFull`",
    ("shop/prices.py::total", "callee_default", "parse_price.currency"): '`"EUR"`',
    ("shop/prices.py::parse_price", "tests", ""): "`test_parse_price`",
    ("shop/cart.py::Cart.add", "callee_location", "check_room"): "`shop/cart.py:32-36`",
    ("shop/cart.py::Cart.check_room", "callers", ""): "`Cart.add`",
    ("lib/view.js::lookup", "callers", ""): "`render`",
    ("lib/view.js::Base.open", "callers", ""): "`Base.later`, `Derived.open`",
    ("lib/view.js::Derived.open", "overrides", "open"): "`Base.open`",
    ("src/geo.ts::Circle.scale", "overrides", "scale"): "`Figure.scale`",
    ("src/geo.ts::Circle", "base_location", "Figure"): "`src/geo.ts:17-30`",
    ("src/geo.ts::Circle.measure", "callee_signature", "area"): (
        "`export function area<T>(radius: number, unit: string): number`"
    ),
    ("pkg/server.go::Server.Start", "callee_location", "check"): "`pkg/server.go:46-48`",
    ("pkg/server.go::newError", "tests", ""): "`TestNewError`",
    ("src/main/java/shop/Cart.java::Cart.add", "callee_signature", "count"): (
        "`private static void count(Item item)`"
    ),
    ("src/main/java/shop/Cart.java::Cart.count", "tests", ""): "`CartTest.counts`",
    ("src/main/java/shop/Cart.java::Small.add", "overrides", "add"): "`Basket.add`",
    ("edges/calls.py::Deeper.two", "overrides", "two"): "`Holder.two`",
    ("edges/calls.py::Holder.static", "callee_signature", "two"): "`def two(self, value)`",
    ("edges/calls.py::outer.user", "callee_signature", "helper"): "`def helper(value)`",
}


# What is not true, or not certain: id, kind, subject, value.
FALSE = [
    ("shop/prices.py::generate", "returns", "", "`1`"),
    ("shop/prices.py::generate", "returns_when", "rows is None", "`1`"),
    ("shop/prices.py::generate", "methods", "", "`generate`"),
    ("shop/prices.py::nested", "raises", "", "`RuntimeError`"),
    ("shop/prices.py::reraised", "raises", "", "`KeyError`"),
    ("shop/prices.py::variable_raise", "raises", "", "`error`"),
    ("shop/prices.py::elses", "guard", "TypeError", "`other`"),
    ("shop/prices.py::elses", "guard", "LookupError", "`other`"),
    ("shop/prices.py::elses", "usage", "tables.fill", "`fill(value, other)`"),
    ("shop/prices.py::elses", "usage", "fill", "`tables.fill(value, other)`"),
    ("shop/prices.py::<module>", "constant", "TWICE", "`2`"),
    ("shop/prices.py::<module>", "methods", "", "`total`"),
    ("shop/cart.py::Cart", "raises", "", "`OverflowError`"),
    ("shop/prices.py::total", "signature", "", "`total`"),
    ("shop/prices.py::total", "signature", "", "`x = 1`"),
    ("shop/prices.py::total", "signature", "", "`def total(`"),
    ("shop/prices.py::total", "returns", "", "`sum(`"),
    ("shop/prices.py::total", "default", "prices", "`1`"),
    ("shop/prices.py::total", "annotation", "return", "`int`"),
    ("edges/calls.py::default_calls", "calls", "", "`when.lower`"),
    ("edges/calls.py::dotted_error", "raises", "", "`socket.error`, `LookupError`, `OSError`"),
    ("edges/calls.py::bare", "returns_when", "lock", "`None`"),
    ("edges/calls.py::again", "usage", "first", "`first(1, 2)`"),
    ("lib/view.js::odd", "raises", "", "`RangeError`, `SyntaxError`, `URIError`"),
    ("lib/view.js::odd", "guard", "SyntaxError", "`b`"),
    ("lib/view.js::odd", "guard", "URIError", "`a`"),
    ("lib/view.js::counter", "returns", "", "`limit`"),
    ("lib/view.js::counter", "returns_when", "limit", "`limit`"),
    ("lib/view.js::render", "usage", "TypeError", "`new TypeError('name is required')`"),
    ("lib/view.js::render", "methods", "", "`render`"),
    ("lib/view.js::Base", "calls", "", "`this.open`"),
    ("lib/view.js::<module>", "calls", "", "`require`"),
    ("lib/view.js::<module>", "constant", "path", "`require('node:path')`"),
    ("edges/calls.js::<module>", "imports", "", "`two`"),
    ("edges/calls.js::<module>", "constant", "changing", "`3`"),
    ("edges/calls.js::raised", "raises", "", "`Error`"),
    ("edges/calls.js::thrower", "raises", "", "`makeError`"),
    ("edges/calls.js::thrower", "guard", "makeError", "`a`"),
    ("edges/calls.js::templates", "calls", "", "`import`"),
    ("edges/calls.js::empty", "guard", "Error", "`!a`"),
    ("edges/calls.py::expression", "raises", "", "`ValueError`"),
    ("edges/calls.js::templates", "calls", "", "`tag`, `a.b`, `import`"),
    ("edges/types.ts::declared", "returns", "", "`1`"),
    ("again/pool.py::handle", "raises", "", "`RuntimeError`"),
    ("again/pool.py::handle", "raises", "", "`RuntimeError`, `exc`"),
    ("again/pool.py::handle", "raises", "", "`RuntimeError`, `?`"),
    ("again/pool.py::silent", "raises", "", "`RuntimeError`"),
    ("again/pool.py::given", "raises", "", "`RuntimeError`"),
    ("again/pool.py::assigned", "raises", "", "`RuntimeError`"),
    ("again/pool.py::capital", "raises", "", "`RuntimeError`"),
    ("again/pool.py::capital", "raises", "", "`RuntimeError`, `Caught`"),
    ("again/pool.py::kept", "raises", "", "`RuntimeError`"),
    ("again/pool.py::caught", "raises", "", "`KeyError`"),
    ("again/pool.ts::handle", "raises", "", "`RangeError`"),
    ("again/pool.ts::given", "raises", "", "`RangeError`"),
    ("again/pool.ts::capital", "raises", "", "`RangeError`, `Kind`"),
    ("again/pool.ts::texts", "raises", "", "`RangeError`"),
    ("again/Pool.java::Pool.handle", "raises", "", "`IllegalStateException`"),
    ("again/Pool.java::Pool.given", "raises", "", "`IllegalStateException`"),
    ("again/pool.py::sections", "purpose", "", "Parameters: url (str): where it is asked."),
    ("again/pool.py::sections", "purpose", "", ""),
    (
        "again/pool.py::underlined",
        "purpose",
        "",
        "Parameters ---------- url : str Where it is asked.",
    ),
    ("again/pool.ts::handle", "purpose", "", "Returns: what the request gives."),
    ("pkg/server.go::closing", "raises", "", "`ErrClosed`"),
    ("pkg/server.go::newError", "raises", "", "`panic`"),
    ("edges/calls.go::reading", "raises", "", "`io.EOF`"),
    ("edges/calls.go::values", "raises", "", "`error`"),
    ("edges/calls.go::unnamed", "parameters", "", "`int`, `string`"),
    ("edges/Calls.java::Calls.types", "raises", "", "`Error`, `IllegalArgumentException`"),
    ("edges/Calls.java::Calls.types", "annotation", "count", "`int`"),
    ("edges/Calls.java::Calls.classes", "raises", "", "`IOException`"),
    ("edges/Calls.java::Calls.Calls", "calls", "", "`this`"),
    ("edges/Calls.java::Calls.Nested.held", "calls", "", "`In`"),
    ("edges/Calls.java::Calls", "constant", "Y", "`3`"),
    ("edges/Calls.java::Calls", "constant", "z", "`4`"),
    ("edges/text.rb::Text.no_parentheses", "parameters", "", "`a`"),
    ("edges/text.rb::Text.no_parentheses", "guard", "Error", "`a`"),
    ("edges/text.php::adder", "calls", "", "`run`"),
    ("edges/text.c::pointer", "parameters", "", "`callback`, `count`"),
    ("edges/text.c::spread", "parameters", "", "`a`"),
    ("edges/text.c::nothing", "signature", "", "`int nothing`"),
]


@pytest.mark.parametrize(("block_id", "kind", "subject", "value"), FALSE)
def test_what_is_false_or_uncertain(
    blocks: dict[str, CodeBlock], block_id: str, kind: str, subject: str, value: str
) -> None:
    fact = Fact(kind=kind, block=block_id, value=value, subject=subject)
    assert not check(fact, [blocks[block_id]])


FALSE_TOGETHER = [
    # Another class, and a class of a language whose bases are not read.
    ("shop/errors.py::CartFull", "shop/cart.py::Cart", "base_location", "Cart", "location"),
    ("shop/errors.py::CartFull", "shop/prices.py::total", "base_location", "total", "location"),
    ("shop/errors.py::ShopError.explain", "shop/errors.py::CartFull", "base_location", "CartFull", "location"),
    ("src/Cart.cs::Cart", "edges/Text.cs::Text", "base_location", "Text", "location"),
    ("src/Cart.cs::Cart.Add", "edges/Text.cs::Text.this", "callee_location", "this", "location"),
    ("src/cart.rs::add", "edges/text.rs::generic", "callee_signature", "generic", "signature"),
    # Nothing says that these override.
    ("shop/cart.py::Cart.add", "shop/cart.py::Cart.add", "overrides", "add", ""),
    ("edges/calls.py::Holder.two", "edges/calls.py::Wide.two", "overrides", "two", ""),
    ("lib/view.js::Base.open", "lib/view.js::Derived.open", "overrides", "open", ""),
    ("edges/Text.cs::Text.this", "edges/Text.cs::Text.this", "overrides", "this", ""),
    # A parameter hides the function, a call is of something else.
    ("edges/calls.py::Holder.shadowed", "edges/calls.py::both", "callee_location", "both", "location"),
    ("edges/calls.py::both", "edges/calls.py::Only.only_method", "callee_location", "only_method", "location"),
    ("edges/calls.js::locals", "edges/calls.js::held.helper", "callee_location", "helper", "location"),
    ("edges/calls.go::local", "edges/calls.go::values", "callee_location", "values", "location"),
    ("shop/prices.py::total", "lib/view.js::lookup", "callee_location", "lookup", "location"),
    ("shop/prices.py::<module>", "shop/prices.py::total", "callee_location", "total", "location"),
]  # fmt: skip


@pytest.mark.parametrize(("block_id", "other_id", "kind", "subject", "what"), FALSE_TOGETHER)
def test_what_is_false_of_two(
    blocks: dict[str, CodeBlock], block_id: str, other_id: str, kind: str, subject: str, what: str
) -> None:
    block, other = blocks[block_id], blocks[other_id]
    values = [fact.value for fact in derive_kind(other, what)] if what else []
    for value in values or [f"`{other.qualified_name}`"]:
        fact = Fact(kind=kind, block=block_id, value=value, subject=subject)
        twin = other.model_copy(update={"id": f"{other_id}#2", "parent": "Elsewhere"})
        assert not check(fact, [block, twin if other is block else other])


def test_what_is_true_of_several(everything: list[tuple[Fact, list[CodeBlock]]]) -> None:
    found = {(fact.block, fact.kind, fact.subject): fact.value for fact, _ in everything}
    assert {key: found.get(key) for key in RELATED_TRUE} == RELATED_TRUE
    kinds = {(fact.block, fact.kind) for fact, _ in everything}
    assert ("shop/prices.py::total", "callers") not in kinds  # a test calls it too
    assert ("shop/prices.py::total", "tests") not in kinds  # the one in tests/ is a helper
    assert ("edges/calls.py::Wide.two", "overrides") not in kinds  # of several bases
    assert ("edges/calls.py::Alone.two", "overrides") not in kinds
    assert ("edges/calls.py::Ring.two", "overrides") not in kinds
    assert ("edges/calls.py::Deeper.absent", "overrides") not in kinds
    assert ("edges/calls.py::recursive", "callers") not in kinds
    assert ("edges/calls.py::uses_same", "callee_location") not in kinds  # two have the name
    assert ("edges/calls.py::Only.only_method", "callers") not in kinds  # of something unknown
    assert ("edges/calls.py::for_classes", "callers") not in kinds  # a class body does
    assert ("edges/calls.py::plain_decorator", "callers") not in kinds  # a decorator
    assert ("edges/calls.py::twice_held", "callers") not in kinds  # one within the other
    assert ("edges/calls.py::in_two_ways", "callee_location") not in kinds


def test_only_what_is_certain_in_the_whole_corpus(
    corpora: dict[str, Corpus], blocks: dict[str, CodeBlock]
) -> None:
    trained, others = corpora["EDGES"]
    index = CorpusIndex(trained.values(), others.values())
    [callee] = index.callees(blocks["edges/calls.py::Holder.one"])
    assert callee.id == "edges/calls.py::Holder.two"
    # The method that is inherited is not in the corpus, though its class says that there is one.
    without = [block for block in blocks.values() if block.id != callee.id]
    deeper = blocks["edges/calls.py::Deeper.two"]
    assert "overrides" not in {fact.kind for fact, _ in CorpusIndex(without).related(deeper)}
    # Callers and tests in another language are no documents for this one.
    shared = blocks["edges/calls.py::shared_callee"]
    foreign = [
        block.model_copy(update={"language": "ruby"}) if "_in_its_name_" in block.name else block
        for block in blocks.values()
    ]
    assert CorpusIndex(blocks.values()).related(shared)
    assert not CorpusIndex(foreign).related(shared)
    trained, others = corpora["GO"]
    moved = [block.model_copy(update={"language": "java"}) for block in others.values()]
    tested = blocks["pkg/server.go::newError"]
    kinds = {fact.kind for fact, _ in CorpusIndex(trained.values(), moved).related(tested)}
    assert "tests" not in kinds


def test_explanations_are_checked_too(blocks: dict[str, CodeBlock]) -> None:
    block = blocks["shop/prices.py::total"]
    line = 'return sum(parse_price(price, "EUR") for price in prices)'
    fact = Fact(kind="explained", block=block.id, value=line, subject="why")
    assert check(fact, [block])
    assert not check(fact.model_copy(update={"value": "return max(prices)"}), [block])
    assert not answers(fact, [block], blocks["shop/prices.py::only_caller"])
    assert derive_kind(block, "explained") == []  # nobody derives them


def test_what_was_found_out_is_forgotten_at_last(
    blocks: dict[str, CodeBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_MOST_KNOWN", 1)
    monkeypatch.setattr(verify, "_KNOWN", {})
    block = blocks["shop/prices.py::total"]
    for fact in derive(block):
        assert check(fact, [block])
    assert len(verify._KNOWN) <= 1


# -- what may not pass --------------------------------------------------------------------------


def mutations(fact: Fact) -> Iterator[Fact]:
    """The same statement with one thing made wrong."""
    items = value_items(fact)
    lists: list[tuple[str, ...]] = [(*items, "zebra_quagga"), items[:-1]]
    for place, item in enumerate(items):
        changed = item[:-1] + ("y" if item[-1] != "y" else "x")
        lists += [
            (*items[:place], changed, *items[place + 1 :]),
            (*items[:place], f"zebra{item}", *items[place + 1 :]),
        ]
    for changed_items in lists:
        value = fact_value(fact.kind, changed_items) if changed_items else ""
        if value != fact.value:
            yield fact.model_copy(update={"value": value})
    yield fact.model_copy(update={"value": f"{fact.value}, or so"})
    yield fact.model_copy(update={"block": "elsewhere.py::nothing"})
    yield fact.model_copy(update={"kind": "poetry"})
    if fact.subject:
        yield fact.model_copy(update={"subject": f"{fact.subject}_zebra"})


def test_no_wrong_fact_passes(everything: list[tuple[Fact, list[CodeBlock]]]) -> None:
    passed = [
        wrong for fact, oracles in everything for wrong in mutations(fact) if check(wrong, oracles)
    ]
    assert passed == []


@given(st.data())
def test_no_random_value_passes(
    everything: list[tuple[Fact, list[CodeBlock]]], data: st.DataObject
) -> None:
    fact, oracles = data.draw(st.sampled_from(everything))
    word = st.text("abcXYZ_019 .()=\"'", min_size=1, max_size=12)
    items = tuple(data.draw(st.lists(word, min_size=1, max_size=3)))
    if set(items) != set(value_items(fact)):
        value = fact_value(fact.kind, items)
        assert not check(fact.model_copy(update={"value": value}), oracles)


def test_values_of_other_facts_do_not_pass(
    everything: list[tuple[Fact, list[CodeBlock]]],
) -> None:
    """What is true of one block is false of another, unless it is true there as well."""
    true = {(f.kind, f.subject, f.block): f.value for f, _ in everything}
    by_kind: dict[str, set[str]] = {}
    for fact, _ in everything:
        by_kind.setdefault(fact.kind, set()).add(fact.value)
    for fact, oracles in everything:
        for value in sorted(by_kind[fact.kind] - {true[fact.kind, fact.subject, fact.block]}):
            assert not check(fact.model_copy(update={"value": value}), oracles), (fact, value)


def test_oracles_must_be_the_right_ones(
    everything: list[tuple[Fact, list[CodeBlock]]], blocks: dict[str, CodeBlock]
) -> None:
    stranger = blocks["shop/prices.py::generate"]
    for fact, oracles in everything:
        assert not check(fact, [])
        assert not check(fact, [*oracles, stranger])
        assert not check(fact, [*oracles, *oracles])
        if len(oracles) > 1:
            assert not check(fact, oracles[:1])
            assert not check(fact, [oracles[0], *[stranger] * (len(oracles) - 1)])
            if fact.kind != "callers" or len(oracles) < 3:
                assert not check(fact, oracles[::-1])


def test_code_that_is_written_from_other_documents(blocks: dict[str, CodeBlock]) -> None:
    for caller, callee, stranger in (
        ("shop/prices.py::total", "shop/prices.py::parse_price", "shop/prices.py::nested"),
        ("lib/view.js::render", "lib/view.js::lookup", "lib/view.js::odd"),
        ("lib/view.js::Base.open", "lib/view.js::Base.check", "lib/view.js::odd"),
        ("src/cart.rs::add", "src/cart.rs::check", "edges/text.rs::generic"),
    ):
        block = blocks[caller]
        [fact] = derive_kind(block, "code")
        assert fact.value == block.source_code
        assert check(fact, [block])
        assert check(fact, [blocks[callee]])
        assert not check(fact, [blocks[stranger]])
        assert not check(fact, [blocks[callee], block])
        copy = block.model_copy(update={"id": "copy"})
        assert not check(fact, [copy])  # it could be copied
        assert not check(fact, [blocks["pkg/server.go::Server"]])
        renamed = block.source_code.replace(blocks[callee].name, "zebra")
        assert not check(fact.model_copy(update={"value": renamed}), [blocks[callee]])
    block = blocks["shop/prices.py::total"]
    broken = block.model_copy(update={"source_code": "def total(", "content_hash": ""})
    [fact] = derive_kind(broken, "code")
    assert not check(fact, [broken])


def test_long_or_redacted_code_is_not_asked_for(blocks: dict[str, CodeBlock]) -> None:
    block = blocks["shop/prices.py::total"]
    long = block.model_copy(update={"source_code": block.source_code + "\n    # x" * MAX_CODE})
    assert derive_kind(long, "code") == []
    redacted = block.model_copy(update={"metadata": {**block.metadata, "secrets_redacted": 1}})
    assert derive_kind(redacted, "code") == []


def test_unreadable_code_confirms_nothing(blocks: dict[str, CodeBlock]) -> None:
    for block_id, source in (
        ("shop/prices.py::total", "def total(:\n"),
        ("shop/prices.py::<module>", "import ("),
        ("shop/cart.py::Cart", "x = 1"),
        ("lib/view.js::render", "function render( {"),
        ("lib/view.js::render", "1 + 1;"),
        ("lib/view.js::Derived", "class {"),
        ("pkg/server.go::newError", "func ("),
        ("src/cart.rs::add", ""),
    ):
        block = blocks[block_id]
        broken = block.model_copy(update={"source_code": source})
        facts = [f for f in derive(block) if f.kind not in ("location", "code")]
        assert facts
        assert not any(check(fact, [broken]) for fact in facts)
        index = CorpusIndex([broken, *(b for b in blocks.values() if b.id != block_id)])
        for fact, oracles in index.related(broken):
            assert fact.kind in ("callers", "tests") or not check(fact, oracles)
    derived = blocks["lib/view.js::Derived.open"]
    broken = derived.model_copy(update={"source_code": "open("})
    fact = Fact(kind="overrides", block=derived.id, value="`Base.open`", subject="open")
    assert check(fact, [derived, blocks["lib/view.js::Base.open"]])
    assert not check(fact, [broken, blocks["lib/view.js::Base.open"]])


def test_a_skeleton_says_where_it_stands(mined: Mine) -> None:
    methods = "".join(
        f"    def method_{n}(self, value):\n        return value + {n} * {n} * value\n\n"
        for n in range(12)
    )
    java = "".join(f"    int m{n}(int value) {{ return value + {n}; }}\n" for n in range(6))
    files = {
        "big.py": f'class Big:\n    """A class that is too long to be shown whole."""\n\n{methods}',
        "Big.java": f"class Big {{\n{java}}}\n",
    }
    trained, others = mined(files, max_tokens=60, include_tests=True)
    found = {**trained, **others}
    for block_id in ("big.py::Big", "Big.java::Big"):
        block = found[block_id]
        assert "skeleton" in block.metadata
        assert stated(block, "location")
        far = block.model_copy(update={"end_line": block.end_line - 5})
        [moved] = derive_kind(far, "location")
        assert not check(moved, [far])
    assert stated(found["Big.java::Big"], "methods") == {"": "`m0`, `m1`, `m2`, `m3`, `m4`, `m5`"}


# -- also answers -------------------------------------------------------------------------------


def test_what_also_answers(
    everything: list[tuple[Fact, list[CodeBlock]]], blocks: dict[str, CodeBlock]
) -> None:
    facts = {(f.block, f.kind, f.subject): (f, o) for f, o in everything}
    cart, add = blocks["shop/cart.py::Cart"], blocks["shop/cart.py::Cart.add"]
    fact, oracles = facts["shop/cart.py::Cart.add", "returns", ""]
    assert answers(fact, oracles, add)
    assert answers(fact, oracles, cart)  # it holds the oracle
    assert answers(fact, oracles, add.model_copy(update={"id": "copy", "path": "copy.py"}))
    assert not answers(fact, oracles, blocks["shop/prices.py::total"])
    # One of the same name with the same answer, and one with another answer.
    fact, oracles = facts["shop/errors.py::CartFull.explain", "default", "verbose"]
    base = blocks["shop/errors.py::ShopError.explain"]
    assert answers(fact, oracles, base)
    assert not answers(fact.model_copy(update={"value": "`True`"}), oracles, base)
    fact, oracles = facts["shop/errors.py::CartFull.explain", "overrides", "explain"]
    twin = base.model_copy(update={"id": "twin", "path": "twin.py", "content_hash": "twin"})
    assert not answers(fact, oracles, twin)
    fact, oracles = facts["shop/errors.py::CartFull.explain", "callee_default", "explain.verbose"]
    assert answers(fact, oracles, twin)
    fact, oracles = facts["shop/prices.py::parse_price", "tests", ""]
    assert answers(fact, oracles, blocks["tests/test_prices.py::test_something_else_of_it"])
    assert not answers(fact, oracles, blocks["tests/test_prices.py::helper"])
    fact, _ = facts["shop/prices.py::total", "code", blocks["shop/prices.py::total"].content_hash]
    shown = [blocks["shop/prices.py::parse_price"]]
    assert answers(fact, shown, blocks["shop/prices.py::total"])
    assert not answers(fact, shown, blocks["shop/prices.py::only_caller"])
    fact, oracles = facts["src/main/java/shop/Cart.java::Cart.add", "callee_location", "count"]
    assert not answers(fact, oracles, blocks["src/cart.c::count"])


# -- values -------------------------------------------------------------------------------------


@given(
    st.sampled_from([*KINDS, *RELATED_KINDS]),
    st.lists(st.text(st.characters(exclude_characters="`"), min_size=1), min_size=1, max_size=4),
)
def test_items_come_back_from_the_value(kind: str, items: list[str]) -> None:
    chosen = tuple(items[:1] if kind in ("purpose", "callee_purpose", "code") else items)
    assert value_items(Fact(kind=kind, block="b", value=fact_value(kind, chosen))) == chosen


def test_what_does_not_fit_is_no_fact(blocks: dict[str, CodeBlock]) -> None:
    block = blocks["shop/prices.py::total"]
    assert make_fact("returns", block, ("a", "b")) is not None
    for kind, items, subject in (
        ("returns", (), ""),
        ("returns", (" ",), ""),
        ("returns", ("a", "b", "c", "d"), ""),
        ("returns", ("a`b",), ""),
        ("returns", ("a\nb",), ""),
        ("returns", ("a" * (MAX_VALUE + 1),), ""),
        ("returns_when", ("a",), "b" * 200),
        ("returns_when", ("a",), "b\nc"),
        ("returns_when", ("a",), "b`c"),
    ):
        assert make_fact(kind, block, items, subject) is None, (kind, items, subject)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Reads a whole file. Then more.", "Reads a whole file."),
        ("Reads a file, e.g. Foo or i.e. Bar. Then more.", "Reads a file, e.g. Foo or i.e. Bar."),
        ("Reads what J. Doe wrote", "Reads what J. Doe wrote"),
        ("Reads a file\nover two lines!\n\nMore.", "Reads a file over two lines!"),
        ("Reads a whole file\n@param x it is", "Reads a whole file"),
        ("Reads a whole file\n:param x: it is", "Reads a whole file"),
        ("Version 1.2 reads it all.", "Version 1.2 reads it all."),
        ("Too short.", ""),
        ("== a heading of it ==", ""),
        ("Returns the price of all items.", "Returns the price of all items."),
        ("Returns -1 where there is no item.", "Returns -1 where there is no item."),
        ("Return (x, y) of a point on it.", "Return (x, y) of a point on it."),
        ("Parameters of the model are read.", "Parameters of the model are read."),
        ("Note that this reads a file.", "Note that this reads a file."),
        ("Example data for all the tests.", "Example data for all the tests."),
        ("Parameterised: reads a whole file.", "Parameterised: reads a whole file."),
        ("Todos of a user are read here.", "Todos of a user are read here."),
        ("Keyword search: reads a whole file.", "Keyword search: reads a whole file."),
        ("Parameters:\n    url (str): where it is asked.", ""),
        ("Parameters\n----------\nurl : str\n    Where it is asked.", ""),
        ("Parameters\n    url: where it is asked", ""),
        ("Params url the place that is asked", ""),
        ("Args: url is the place that is asked.", ""),
        ("**Args**:\n    url: where it is asked", ""),
        ("*Args:* url is where it is asked", ""),
        ("Arguments (all optional): url, and so on", ""),
        ("Keyword Arguments:\n    url: where it is asked", ""),
        ("Other parameters: url and all the rest", ""),
        ("ARGS - the place that is asked", ""),
        ("Returns: the price of all items.", ""),
        ("Returns (bool): whether it was read.", ""),
        ("Returns\n    whether it was read at last", ""),
        ("Return value: whether it was read.", ""),
        ("Raises:\n    ValueError: nothing was given", ""),
        ("Note: this reads a whole file.", ""),
        ("Example:\n    read('a', 'b') reads both files", ""),
        ("Examples::\n    read('a', 'b') reads both files", ""),
        ("Example usage: read two files at once", ""),
        ("Usage: read [options] file", ""),
        ("Attributes:\n    url: where it is asked", ""),
        ("Properties: url and all the rest", ""),
        ("See also the other function here.", ""),
        ("TODO(me) write what this does", ""),
        ("TODO: write what this does", ""),
        ("Deprecated since 2.0, use that one.", ""),
        (":param url: where it is asked\nand more of it here", ""),
        ("@param url where it is asked\nand more of it here", ""),
        ("Prices of a shop\n================\n\nMore.", ""),
        ("********\nPrices of a whole shop\n********", ""),
        ("`Args`\n    url: where it is asked", ""),
        ("word " * 60, ""),
        ("", ""),
    ],
)
def test_first_sentences(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence
    assert opening_sentence(docstring) == sentence


@given(
    st.lists(
        st.sampled_from(
            [
                *("args", "parameter", "Returns", "note", "see", "also", "example", "usage"),
                *("Deprecated", "TODO", "keyword", "other", "params", "value", "todo", "(all)"),
                *("(x", "a_b", "word", "**a**", "**", "`", "----", "===", "-", ":", ".", "#"),
                *("1", "\n", " ", "\n  "),
            ]
        ),
        max_size=7,
    ),
    st.sampled_from(["", " "]),
)
def test_both_ways_know_the_same_headings(parts: list[str], between: str) -> None:
    docstring = between.join([*parts, " reads a whole file of it."])
    assert bool(opening_sentence(docstring)) == bool(first_sentence(docstring))


@given(st.text("abc .!?eg,A\n(@:", max_size=80))
def test_both_ways_find_the_same_first_sentence(docstring: str) -> None:
    assert opening_sentence(docstring) in ("", first_sentence(docstring))


# -- text ---------------------------------------------------------------------------------------


@given(
    st.text("ab\"'`/*#\n\\ {}()[]", max_size=60),
    st.sampled_from(["python", "javascript", "go", "java", "rust", "php", "ruby", "c"]),
)
def test_masked_code_keeps_its_places(source: str, language: str) -> None:
    masked = mask(source, language)
    assert len(masked) == len(source)
    assert [at for at, c in enumerate(masked) if c == "\n"] == [
        at for at, c in enumerate(source) if c == "\n"
    ]


def test_masks() -> None:
    assert mask('a = "x)" # y', "python") == 'a = """"    '
    assert mask("a = '''x\n)'''", "python") == 'a = """"\n    '
    assert mask("a /* ( */ + `(${b})` // c", "javascript").count("(") == 0
    assert mask('return /[/"(]/.test(x)', "javascript").count("(") == 1
    assert mask("fn f<'a>(x: &'a str) -> char { '(' }", "rust").count("(") == 1


def test_brackets() -> None:
    assert closing("f(a[b{c}], d) e", 1) == 12
    assert closing("f(a]", 1) == -1
    assert closing("f(a", 1) == -1


def test_branches_that_are_not_read() -> None:
    python = Code(
        "def f(a):\n"
        "    if (a and\n            b):\n        return 1\n"
        "    if (lambda: a)(): return 2\n"
        "    if {a: 1}[a] and (b := a): return 3\n"
        "    try:\n        if a: return 4\n    finally:\n        pass\n",
        "python",
    )
    assert [branch.condition for branch in python.branches()] == ["{a: 1}[a] and (b := a)"]
    script = Code("function f(a) { if (a) b(); if (a { return 1; } if (c) return 2 }", "javascript")
    assert list(script.branches()) == []
    script = Code("function f(a) { if (c) { return 2; } if (d) { return [3; } }", "javascript")
    assert [branch.condition for branch in script.branches()] == ["c"]
    assert [b.condition for b in Code("func f() { if a { return } if b", "go").branches()] == ["a"]
    assert (
        list(Code("func f() { if a := b(); a { return } else if c { return } }", "go").branches())
        == []
    )
    assert (
        list(
            Code("def f(a):\n    if {a: 1,\n            a: 2}[a]: return 1\n", "python").branches()
        )
        == []
    )
    assert list(Code("x = 1", "python").branches()) == []
