"""`query`: what is retrieved and given, what the answer rests on, chats, and honest refusals.

The model is scripted by the test (it sees every prompt); blocks come from a repository that is
really mined. One test goes the whole way, through llama.cpp in this process and in its server's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from language_samples import SAMPLES
from serving_house import ANSWER, scripted_model

from forge_mcp.errors import BadInput, Cancelled, NotFound
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.pipeline.context import make_request
from forge_mcp.pipeline.extract import ExtractRequest, extract
from forge_mcp.pipeline.grounding import ground, stale_among
from forge_mcp.pipeline.query import (
    NOTHING_MATCHES,
    QueryRequest,
    QueryResult,
    answer_chat,
    query,
    release,
)
from forge_mcp.pipeline.retrieving import retrieve, searchable_blocks
from forge_mcp.pipeline.skill import SkillContext, skills
from forge_mcp.retrieval.relevance import Definitions, names_in, share_of_terms
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, quote, render_answer
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import registry
from forge_mcp.serving.chat import Deployed, OnText, Reply, Sampling
from forge_mcp.serving.llamacpp_server import running_servers, stop_servers
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace

SHOP = '''"""A shop."""


class Basket:
    """What a customer wants to buy."""

    limit = 20

    def add(self, article, count=1):
        """Put an article into the basket."""
        if count > self.limit:
            raise ValueError("too many")
        self.rows.append((article, count))

    def total(self, currency):
        """The sum of all prices, in a currency."""
        return sum(price_of(article, currency) * count for article, count in self.rows)


def price_of(article, currency):
    """Look the price of one article up and convert it to a currency."""
    table = load_prices()
    return table[article] * rate(currency)


def rate(currency):
    """How much of a currency one unit of the table's is worth."""
    return RATES[currency]
'''
STORE = '''"""Where articles lie."""


def load_prices():
    """Read the table of prices from the disk."""
    with open("prices.csv") as file:
        return dict(line.split(",") for line in file)


def restock(article, warehouse):
    """Order an article from the supplier when the warehouse runs low on it."""
    if warehouse.count(article) < 5:
        warehouse.order(article, 10)
'''


@dataclass
class Scripted:
    """A model that answers with what it is told, in pieces; a word is a token."""

    answers: list[str]
    context: int = 4000
    stopped: bool = True
    prompts: list[list[Message]] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        self.prompts.append(list(messages))
        text = self.answers.pop(0)
        for piece in text.splitlines(keepends=True):
            if on_text:
                on_text(piece)
        return Reply(text, self.stopped, self.count_tokens(messages), len(text.split()))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Shop:
    """A mined repository with a deployed model."""

    context: SkillContext
    model: Scripted
    corpus: Artifact
    events: list[Event]

    @property
    def repository(self) -> Path:
        assert self.context.repository is not None
        return self.context.repository

    def ask(self, text: str, answer: str, **fields: Any) -> QueryResult:
        self.model.answers[:] = [answer]
        return query(QueryRequest(text=text, **fields), self.context)

    def set(self, **sections: Any) -> None:
        self.context = replace(self.context, settings=load_settings(None, sections))


def put(
    workspace: Workspace,
    kind: Any,
    number: int,
    parents: list[str],
    model: bytes = b"{}",
    **settings: Any,
) -> str:
    with workspace.stage(kind, "shop") as staged:
        for name in ("model.gguf", "tokenizer.json"):
            (staged.path / name).write_bytes(model)
        made = staged.commit(
            id=workspace.new_id(kind, "shop", f"{number:064}"),
            inputs_hash=f"{number:064}",
            parents=parents,
            settings=settings,
        )
    return made.id


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    skills()
    repository = tmp_path / "shop"
    repository.mkdir()
    (repository / "shop.py").write_text(SHOP)
    (repository / "store.py").write_text(STORE)
    workspace = Workspace(tmp_path / "forge")
    events: list[Event] = []
    settings = load_settings(None, {"mining": {"workers": 1}})
    context = SkillContext(workspace, settings, "shop", repository, sink=events.append)
    mined = extract(ExtractRequest(repo=str(repository)), context)
    export = put(workspace, "export", 1, [])
    deployment = put(workspace, "deployment", 2, [mined.corpus_id], system_prompt="You know shop.")
    registry.register(
        workspace,
        id=deployment,
        project="shop",
        model="shop-1",
        target="llamacpp",
        run="run-shop-1",
        export=export,
    )
    model = Scripted([])

    def open_chat(deployed: Deployed, serving: Any, **given: Any) -> Scripted:
        model.opened.append({"deployed": deployed, **given})
        return model

    monkeypatch.setattr("forge_mcp.serving.chat.open_chat", open_chat)
    events.clear()
    yield Shop(context, model, workspace.load(mined.corpus_id), events)
    release()


PRICE = render_answer(quote("    return table[article] * rate(currency)"), "the product")


def test_the_whole_way_through_llama_cpp(tmp_path: Path) -> None:
    """In this process for a short-lived face, in the model's server for one that lives long."""
    skills()
    repository = tmp_path / "shop"
    repository.mkdir()
    (repository / "rows.py").write_text(
        "import os\n\n\ndef zip_all(rows):\n    return zip(*rows)\n"
    )
    workspace = Workspace(tmp_path / "forge")
    serving = {"num_ctx": 512, "num_predict": 64, "threads": 1}
    settings = load_settings(None, {"mining": {"workers": 1, "min_tokens": 1}, "serving": serving})
    base = scripted_model(tmp_path / "m", ANSWER)
    gguf = convert_to_gguf(base, tmp_path / "m.gguf", "f16").read_bytes()
    events: list[Event] = []
    context = SkillContext(workspace, settings, "shop", repository, sink=events.append)
    mined = extract(ExtractRequest(repo=str(repository)), context)
    export = put(workspace, "export", 1, [], model=gguf)
    registry.register(
        workspace,
        id=put(workspace, "deployment", 2, [mined.corpus_id], system_prompt="You know shop."),
        project="shop",
        model="shop-1",
        target="llamacpp",
        run="run-shop-1",
        export=export,
    )
    try:
        results = []
        for face, servers in (("cli", 0), ("mcp", 1)):
            events.clear()
            asked = QueryRequest(text="Which parameters does `zip_all` take?")
            result = query(asked, replace(context, face=face))  # type: ignore[arg-type]
            assert len(running_servers(workspace)) == servers
            assert (result.answer, result.grounding, result.complete) == ("`rows`", "quoted", True)
            assert [place.model_dump() for place in result.citations] == [
                {"path": "rows.py", "start_line": 4, "end_line": 4, "stale": False}
            ]
            texts = [e.payload["text"] for e in events if "text" in e.payload]
            assert "".join(texts) == ANSWER
            assert len(texts) > 3
            results.append(result.model_dump(exclude={"seconds", "retrieval_seconds"}))
        assert results[0] == results[1]
    finally:
        release()
        stop_servers(workspace)


# -- an answer and what it rests on ----------------------------------------------------------------


def test_an_answer_cites_lines_that_hold_the_quote(shop: Shop) -> None:
    result = shop.ask("What does `price_of` return?", PRICE)
    assert (result.answer, result.found, result.complete) == ("the product", True, True)
    assert (result.grounding, result.unverified_quotes) == ("quoted", 0)
    [cited] = result.citations
    lines = (shop.repository / cited.path).read_text().splitlines()
    assert lines[cited.start_line - 1 : cited.end_line] == [
        "    return table[article] * rate(currency)"
    ]
    assert cited.stale is False
    assert result.sources[0].name == "price_of"
    assert result.model == "shop-1"
    assert (result.prompt_tokens, result.completion_tokens) == (
        shop.model.count_tokens(shop.model.prompts[0]),
        len(PRICE.split()),
    )
    assert 0 < result.retrieval_seconds <= result.seconds


@pytest.mark.parametrize(
    ("edit", "stale"),
    [
        (lambda text: text, False),
        (lambda text: text.replace("def rate(currency):", "def rate(name):"), False),
        (lambda text: "# new\n" + text, True),
        (lambda text: text.replace("rate(currency)\n\n", "rate(currency) + 1\n\n"), True),
        (lambda text: text.partition("def price_of")[0], True),
        (None, True),
    ],
)
def test_a_citation_says_when_its_file_has_changed_there(
    shop: Shop, edit: Callable[[str], str] | None, stale: bool
) -> None:
    path = shop.repository / "shop.py"
    if edit is None:
        path.unlink()
    else:
        path.write_text(edit(SHOP))
    [cited] = shop.ask("What does `price_of` return?", PRICE).citations
    assert cited.stale is stale


def test_a_file_that_is_no_code_any_more_holds_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = searchable_blocks(shop.corpus)
    mining = shop.context.settings.mining
    (shop.repository / "shop.py").write_bytes(b"\xff\x81\x00\x02" * 50)
    stale = stale_among(blocks, shop.repository, mining)
    assert {path for block in blocks if stale[block.id] for path in [block.path]} == {"shop.py"}

    def too_deep(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("forge_mcp.mining.definitions.find_definitions", too_deep)
    assert set(stale_among(blocks, shop.repository, mining).values()) == {True}


def test_without_the_repository_nobody_can_say_whether_it_changed(shop: Shop) -> None:
    shop.context = replace(shop.context, repository=None)
    [cited] = shop.ask("What does `price_of` return?", PRICE).citations
    assert cited.stale is None


def test_blocks_of_every_language_are_found_in_their_files(tmp_path: Path) -> None:
    """Skeletons of classes too; and one changed line is seen."""
    skills()
    repository = tmp_path / "all"
    shutil.copytree(SAMPLES, repository)
    (tmp_path / "changed").mkdir()
    settings = load_settings(None, {"mining": {"workers": 1, "max_tokens": 60, "min_tokens": 1}})
    context = SkillContext(Workspace(tmp_path / "forge"), settings, "all", repository)
    mined = extract(ExtractRequest(repo=str(repository)), context)
    blocks = searchable_blocks(context.workspace.load(mined.corpus_id))
    assert len({block.language for block in blocks}) > 10
    assert sum("skeleton" in block.metadata for block in blocks) > 10
    mining = settings.mining
    assert set(stale_among(blocks, repository, mining).values()) == {False}
    changed = tmp_path / "changed"
    for block in blocks[::5]:
        data = (repository / block.path).read_bytes()
        places = {block.start_byte + 1, block.end_byte - 1}
        if "skeleton" not in block.metadata:
            places.add((block.start_byte + block.end_byte) // 2)
        for at in places:
            (changed / block.path).write_bytes(data[:at] + b"zz" + data[at:])
            assert stale_among([block], changed, mining) == {block.id: True}, data[:at][-20:]


def test_quotes_that_stand_nowhere_mark_the_answer() -> None:
    block = a_block("def f(x):\n    return x\n")
    real, wrong = quote("return x"), quote("return y")
    for reasoning, grounding, unverified in [
        (f"{real} {real}", "quoted", 0),
        (f"{real} {wrong}", "partly", 1),
        (f"{wrong} {wrong}", "invented", 2),
        ("because", "none", 0),
    ]:
        grounded = ground(render_answer(reasoning, "`x`"), [block], None, load_settings().mining)
        assert (grounded.grounding, grounded.unverified_quotes) == (grounding, unverified)
        assert grounded.found
        assert len(grounded.citations) == (grounding in ("quoted", "partly"))


@pytest.mark.parametrize(
    "final",
    [ABSTAIN_ANSWER, "The given documents do not say", "`The given` documents do  not say."],
)
def test_a_refusal_of_the_model_is_no_find_and_cites_nothing(shop: Shop, final: str) -> None:
    result = shop.ask("What does `price_of` log?", render_answer(quote("rate(currency)"), final))
    assert (result.found, result.citations, result.answer) == (False, [], final)
    assert result.complete


def test_an_answer_without_an_end_is_shown_and_marked(shop: Shop) -> None:
    result = shop.ask("What does `rate` return?", "It returns the")
    assert (result.answer, result.complete, result.reasoning) == ("It returns the", False, "")
    shop.model.stopped = False
    assert not shop.ask("What does `rate` return?", render_answer("", "x")).complete


# -- what is retrieved -----------------------------------------------------------------------------


def test_nothing_of_the_kind_in_the_repository_is_said_without_asking_the_model(
    shop: Shop,
) -> None:
    result = shop.ask("How do penguins keep their eggs warm in winter?", "never asked")
    assert (result.answer, result.found, result.complete) == (NOTHING_MATCHES, False, True)
    assert (result.citations, result.sources) == ([], [])
    assert shop.model.opened == []
    assert [e.payload["text"] for e in shop.events if "text" in e.payload] == [NOTHING_MATCHES]
    assert shop.ask("When is an article ordered from the supplier?", "x").answer == "x"


def test_a_definition_that_is_named_comes_first(shop: Shop) -> None:
    for name, first in [
        ("`rate`", "rate"),
        ("Basket.total", "Basket.total"),
        ("`shop.Basket.add()`", "Basket.add"),
        ("load_prices", "load_prices"),
    ]:
        asked = f"Which table of prices that is read from the disk does {name} use?"
        assert retrieve(asked, 4, shop.corpus, shop.context).blocks[0].qualified_name == first
    asked = "Which table of prices that is read from the disk does rate use?"
    plain = retrieve(asked, 4, shop.corpus, shop.context)
    assert plain.blocks[0].qualified_name == "load_prices"


def test_names_that_nothing_has_are_told(shop: Shop) -> None:
    result = shop.ask("Does `warp_drive` convert the price to a currency?", "x")
    assert result.notes == ["Nothing that was found in this repository is called `warp_drive`."]
    assert result.notes[0] in [e.payload.get("message") for e in shop.events]
    # A parameter is no definition, but it is there.
    assert shop.ask("What is `currency` for in `price_of`?", "x").notes == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("What does `rate` do?", ["rate"]),
        ("what does rate do?", []),
        ("Is HTTP used by ConnectionPool or `Pool.close(now)`?", ["Pool.close", "ConnectionPool"]),
        ("where is read_rows, a.b.c and read_rows", ["read_rows", "a.b.c"]),
        ("`src/app.py` and `!!`", ["src"]),
        ("It works. Then it stops.", []),
    ],
)
def test_names_in_a_question(text: str, names: list[str]) -> None:
    assert names_in(text) == names


def a_block(source: str, name: str = "f", qualified: str = "") -> CodeBlock:
    return CodeBlock(
        id=f"a.py::{qualified or name}",
        content_hash="0" * 64,
        path="a.py",
        language="python",
        block_type="function",
        name=name,
        qualified_name=qualified or name,
        source_code=source,
        start_line=1,
        end_line=2,
        start_byte=0,
        end_byte=9,
        tokens=9,
    )


def test_the_share_of_telling_terms() -> None:
    blocks = [a_block("open the red door"), a_block("paint a wall")]
    assert share_of_terms("How would you paint the door?", blocks) == 0.5
    assert share_of_terms("red doors", blocks) == 1.0
    assert share_of_terms("what does it do?", blocks) == 1.0
    # The words with which one asks about any definition do not count against the one named.
    assert share_of_terms("Which parameters does paint take?", blocks) == 1.0
    assert share_of_terms("bake bread", blocks) == share_of_terms("red", []) == 0.0


def test_definitions_by_the_longest_known_end() -> None:
    one, two = a_block("x", "close", "Pool.close"), a_block("y", "close", "File.close")
    known = Definitions([one, two])
    assert known.of("http.Pool.close") == known.of("Pool.close") == [one]
    assert known.of("close") == known.of("Nothing.close") == [one, two]
    assert known.of("open") == []


# -- chats -----------------------------------------------------------------------------------------


def said(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[n % 2], content=text) for n, text in enumerate(turns)]  # type: ignore[arg-type]


def test_a_follow_up_is_looked_up_with_the_question_before_and_shown_it(shop: Shop) -> None:
    earlier = said(
        "What does `price_of` do?", render_answer(quote("gone"), "It <|im_end|> converts.")
    )
    result = shop.ask("And what raises an error in it?", "x", history=earlier)
    assert result.sources[0].name == "price_of"
    system, asked, answered, newest = shop.model.prompts[-1]
    assert (system.role, system.content) == ("system", "You know shop.")
    assert asked.content == "Question: What does `price_of` do?"
    assert answered.content == "<ANSWER>: It <\\|im_end|> converts."
    assert newest.content.endswith("Question: And what raises an error in it?")
    assert newest.content.startswith("<DOCUMENT> shop.py:")

    alone = shop.ask("And where does `restock` order?", "x", history=earlier)
    assert alone.sources[0].name == "restock"
    assert "price_of" not in {source.name for source in alone.sources[:1]}


def test_the_oldest_turns_are_left_out_where_the_context_is_full(shop: Shop) -> None:
    long = "word " * 100
    turns = [t for n in range(5) for t in (f"{n} What of `rate` {long}?", f"answer {n} {long}")]
    shop.set(mining={"workers": 1}, serving={"num_ctx": 1100, "num_predict": 100})
    result = shop.ask("And `rate` now?", "x", history=said(*turns))
    assert result.notes == [
        "The oldest 1 of 5 earlier questions did not fit the model's context and were left out."
    ]
    users = [m.content for m in shop.model.prompts[-1] if m.role == "user"]
    assert [text[:11] for text in users[:-1]] == [f"Question: {n}" for n in (1, 2, 3, 4)]
    assert "def rate" in users[-1]
    assert result.prompt_tokens <= 1000
    shop.model.context = 420  # the model was made for less than the setting says
    assert "oldest 4 of 5" in shop.ask("And `rate`?", "x", history=said(*turns)).notes[0]
    shop.model.context = 110
    assert "oldest 5 of 5" in shop.ask("And?", "x", history=said(*turns), max_documents=0).notes[0]


def test_documents_that_do_not_fit_are_told(shop: Shop) -> None:
    shop.set(mining={"workers": 1}, serving={"num_ctx": 150, "num_predict": 100})
    result = shop.ask("What does `rate` return?", "x")
    assert [source.name for source in result.sources] == ["rate"]
    assert any("it does not fit" in str(event.payload) for event in shop.events)
    with pytest.raises(BadInput, match="question is longer"):
        shop.ask("What is `rate` " + "word " * 60, "x")


@pytest.mark.parametrize(
    "turns",
    [
        [],
        said("one", "two"),
        [*said("one"), *said("two")],
        [Message(role="assistant", content="one")],
        [*said("one"), Message(role="system", content="late"), *said("two")],
        said("one", "two", "  "),
    ],
)
def test_a_chat_out_of_order_is_refused_in_words(shop: Shop, turns: list[Message]) -> None:
    with pytest.raises(BadInput, match=r"not in order|is empty"):
        answer_chat(turns, shop.context)


def test_system_messages_of_a_client_come_behind_the_projects_own(shop: Shop) -> None:
    shop.model.answers[:] = ["x"]
    chat = [Message(role="system", content="Be brief."), *said("What does `rate` do?")]
    answer_chat(chat, shop.context)
    assert shop.model.prompts[-1][0].content == "You know shop.\n\nBe brief."


def test_text_is_streamed_to_both_listeners_and_one_that_raises_ends_it(shop: Shop) -> None:
    shop.model.answers[:] = [PRICE, PRICE]
    pieces: list[str] = []
    answer_chat(said("What does `price_of` return?"), shop.context, pieces.append)
    assert "".join(pieces) == PRICE
    assert len(pieces) == 2
    assert [e.payload["text"] for e in shop.events if "text" in e.payload] == pieces
    steps = [e.payload for e in shop.events if "done" in e.payload]
    assert [step["done"] for step in steps] == [0, 1, 2]
    assert shop.events.index(next(e for e in shop.events if "text" in e.payload)) > 2

    def leave(text: str) -> None:
        raise Cancelled("gone")

    with pytest.raises(Cancelled):
        answer_chat(said("What does `price_of` return?"), shop.context, leave)


def test_the_command_line_gives_history_as_json(shop: Shop) -> None:
    turns = [message.model_dump() for message in said("What does `rate` do?", "It converts.")]
    request = make_request(
        skills()["query"], {"text": "And?", "history": [json.dumps(turn) for turn in turns]}
    )
    assert request == QueryRequest(
        text="And?", history=said("What does `rate` do?", "It converts.")
    )
    for wrong in (["no json"], ['{"role": "robot", "content": ""}'], "text"):
        with pytest.raises(BadInput, match="history"):
            make_request(skills()["query"], {"text": "And?", "history": wrong})


# -- which model, and where ------------------------------------------------------------------------


def test_a_face_that_lives_long_shares_the_models_server(shop: Shop) -> None:
    for face, shares in (("cli", False), ("job", False), ("mcp", True), ("rest", True)):
        shop.context = replace(shop.context, face=face)  # type: ignore[arg-type]
        shop.ask("What does `rate` do?", "x")
        opened = shop.model.opened[-1]
        assert opened["shared_in"] == (shop.context.workspace if shares else None)
        assert (opened["deployed"].model, opened["deployed"].project) == ("shop-1", "shop")
    with pytest.raises(NotFound, match="shop-9"):
        shop.ask("What?", "x", model="shop-9")


def test_closed_book_on_request_and_where_the_code_is_not_here(shop: Shop) -> None:
    closed = shop.ask("How do penguins live?", PRICE, max_documents=0)
    assert (closed.sources, closed.grounding, closed.notes) == ([], "invented", [])
    assert shop.model.prompts[-1][-1].content == "Question: How do penguins live?"

    workspace = shop.context.workspace
    export = put(workspace, "export", 7, [])
    imported = put(
        workspace,
        "deployment",
        8,
        ["export-shop-gone"],
        system_prompt="You know other.",
        imported={"from": "elsewhere", "at": "now"},
    )
    registry.register(
        workspace,
        id=imported,
        project="shop",
        model="shop-8",
        target="llamacpp",
        run="run-gone",
        export=export,
    )
    here = shop.ask("What does `rate` do?", "x")
    assert (here.model, here.sources[0].name) == ("shop-8", "rate")  # what extract has made here
    for path in workspace.folder("corpus").iterdir():
        path.rename(shop.repository.parent / path.name)
    alone = shop.ask("What does `rate` do?", "x")
    assert (alone.sources, alone.found) == ([], True)
    assert "asked without documents" in alone.notes[0]
