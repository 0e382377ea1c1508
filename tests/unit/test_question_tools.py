"""The agent as a teacher (list_question_tasks, submit_examples), and synthesize with a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raft_blocks import SHOP, blocks_of
from teacher_cases import ADD, GOOD, good_teacher
from teacher_server import TeacherServer, teacher_server

from forge_mcp.errors import BadInput, ForgeError, InvalidSettings, NotFound, Unavailable
from forge_mcp.pipeline.context import make_request
from forge_mcp.pipeline.questions import (
    ListQuestionTasksRequest,
    ListQuestionTasksResult,
    QuestionTask,
    SubmitExamplesRequest,
    SubmitExamplesResult,
    list_question_tasks,
    submit_examples,
)
from forge_mcp.pipeline.skill import SkillContext, skills
from forge_mcp.pipeline.synthesize import SynthesizeRequest, SynthesizeResult, synthesize
from forge_mcp.quality import validate_dataset
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.raft_examples import RaftExample
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, write_jsonl

PROJECT = "shop"
DOCUMENTS = "documents.jsonl"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("FORGE_"):
            monkeypatch.delenv(name)


class Shop:
    """A workspace with a corpus, and what the skills said while they worked."""

    def __init__(self, home: Path) -> None:
        self.workspace = Workspace(home)
        self.events: list[Event] = []
        inputs_hash = hash_inputs({"corpus": PROJECT})
        with self.workspace.stage("corpus", PROJECT) as staged:
            write_jsonl(staged.path / "blocks.jsonl", blocks_of(SHOP))
            write_jsonl(staged.path / "rejected.jsonl", [])
            self.corpus = staged.commit(
                id=self.workspace.new_id("corpus", PROJECT, inputs_hash), inputs_hash=inputs_hash
            )

    def context(self, **teacher: Any) -> SkillContext:
        quick = {"timeout_seconds": 5, "retries": 0, "max_failures": 3}
        settings = load_settings(call={"teacher": quick | teacher})
        return SkillContext(self.workspace, settings, PROJECT, sink=self.events.append)

    def synthesize(self, teacher: str | None = None, **settings: Any) -> SynthesizeResult:
        request = SynthesizeRequest(corpus=self.corpus.id, teacher=teacher)
        return synthesize(request, self.context(**settings))

    def tasks(self, dataset: str, **fields: Any) -> ListQuestionTasksResult:
        request = ListQuestionTasksRequest(dataset=dataset, **fields)
        return list_question_tasks(request, self.context())

    def submit(self, dataset: str, examples: list[Any], **fields: Any) -> SubmitExamplesResult:
        request = make_request(
            skills()["submit_examples"], {"dataset": dataset, "examples": examples, **fields}
        )
        assert isinstance(request, SubmitExamplesRequest)
        return submit_examples(request, self.context())

    def logs(self) -> list[str]:
        return [event.payload["message"] for event in self.events if event.kind == "log"]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "forge")


@pytest.fixture
def dataset(shop: Shop) -> str:
    return shop.synthesize().dataset_id


def rows(artifact: Artifact, name: str = "examples.jsonl") -> list[dict[str, Any]]:
    return list(artifact.rows(name))


EXAMPLE = {
    "block": ADD, "kind": GOOD.kind, "question": GOOD.question, "quote": GOOD.quote,
    "reasoning": GOOD.reasoning, "answer": GOOD.answer,
}  # fmt: skip


# -- list_question_tasks ----------------------------------------------------------------------


def test_tasks_hold_what_a_writer_needs(shop: Shop, dataset: str) -> None:
    result = shop.tasks(dataset, limit=50)
    assert result.dataset_id == dataset and result.total == len(result.tasks) > 10
    assert result.next == "" and "byte for byte" in result.rules
    task = next(one for one in result.tasks if one.block == ADD)
    block = next(one for one in blocks_of(SHOP) if one.id == ADD)
    assert isinstance(task, QuestionTask)
    assert (task.path, task.start_line, task.end_line) == ("shop/cart.py", 12, 18)
    assert task.name == "`Cart.add`" and task.source == block.source_code
    assert len(task.wanted) == 3 and all(task.wanted.values())
    assert task.facts and task.asked
    stated = {(fact.kind, fact.value) for fact in task.facts}
    assert len(stated) == len({(fact.kind, fact.subject, fact.value) for fact in task.facts})
    held_out = {
        row["fact"]["block"]
        for row in rows(shop.workspace.load(dataset))
        if row["split"] != "train" and not row["closed_book"]
    }
    assert held_out and not held_out & {one.block for one in result.tasks}


def test_pages_hold_every_task_once(shop: Shop, dataset: str) -> None:
    whole = [one.block for one in shop.tasks(dataset, limit=50).tasks]
    seen: list[str] = []
    after = ""
    for _ in range(len(whole)):
        page = shop.tasks(dataset, limit=4, after=after)
        seen += [one.block for one in page.tasks]
        after = page.next
        if not after:
            break
    assert seen == whole
    with pytest.raises(BadInput, match="no definition") as caught:
        shop.tasks(dataset, after="shop/none.py::none")
    assert "first page" in caught.value.next_step


# -- submit_examples --------------------------------------------------------------------------


def test_what_passes_makes_a_new_dataset(shop: Shop, dataset: str) -> None:
    before = shop.workspace.load(dataset)
    result = shop.submit(dataset, [EXAMPLE], author="claude")
    assert (result.accepted, result.refused, result.refused_reasons) == (1, [], {})
    after = shop.workspace.load(result.dataset_id)
    assert after.id != dataset and after.manifest.parents == [dataset]
    assert str(after.path) == result.path
    assert rows(after)[:-1] == rows(before) and result.examples == len(rows(after))
    row = RaftExample.model_validate(rows(after)[-1])
    assert row.author == "claude" and row.split == "train" and row.fact.value == GOOD.quote
    for name in ("preferences.jsonl", "valid.jsonl", "test.jsonl", "documents.jsonl"):
        assert rows(after, name) == rows(before, name)
    chats = rows(after, "train.jsonl")
    assert chats[:-1] == rows(before, "train.jsonl")
    asked, answered = (message["content"] for message in chats[-1]["messages"][1:])
    assert asked.endswith(f"Question: {GOOD.question}") and GOOD.quote in asked
    assert answered.endswith(f"<ANSWER>: {GOOD.answer}")


def test_the_same_submission_gives_the_same_dataset(shop: Shop, dataset: str) -> None:
    one = shop.submit(dataset, [EXAMPLE])
    two = shop.submit(dataset, [EXAMPLE])
    assert one.dataset_id == two.dataset_id and "already" in shop.logs()[-1]
    again = shop.submit(one.dataset_id, [EXAMPLE])
    assert again.dataset_id == one.dataset_id and again.accepted == 0
    assert again.refused_reasons == {"repeated_question": 1}


def test_an_enlarged_dataset_can_be_validated_and_enlarged_again(shop: Shop, dataset: str) -> None:
    enlarged = shop.submit(dataset, [EXAMPLE])
    artifact = shop.workspace.load(enlarged.dataset_id)
    documents = {row["id"]: CodeBlock.model_validate(row) for row in rows(artifact, DOCUMENTS)}
    examples = [RaftExample.model_validate(row) for row in rows(artifact)]
    found = validate_dataset(examples, documents, load_settings().quality)
    assert found.passed, found.reasons
    assert GOOD.question in {example.question for example in found.kept}
    more = EXAMPLE | {
        "kind": "how",
        "question": "How does `Cart.add` put several of one item into the cart?",
        "quote": "self.items.extend([item] * count)",
        "reasoning": "The list `[item] * count` is appended to the items in one call.",
        "answer": "It extends the items by a list that holds the item `count` times.",
    }
    result = shop.submit(enlarged.dataset_id, [more])
    assert result.accepted == 1, result.refused


def test_what_is_refused_comes_back_with_its_reason(shop: Shop, dataset: str) -> None:
    held_out = next(
        row["fact"]["block"]
        for row in rows(shop.workspace.load(dataset))
        if row["split"] != "train" and not row["closed_book"]
    )
    submitted = [
        EXAMPLE | {"block": "shop/none.py::none"},
        EXAMPLE | {"block": held_out},
        EXAMPLE | {"quote": "self.check_rooms(count)"},
        EXAMPLE,
        EXAMPLE | {"kind": "gossip"},
    ]
    result = shop.submit(dataset, submitted)
    assert result.accepted == 1
    assert [(one.index, one.reason) for one in result.refused] == [
        (0, "unknown_block"), (1, "unknown_block"), (2, "unverified_quote"), (4, "unknown_kind"),
    ]  # fmt: skip
    assert "not in this dataset" in result.refused[0].detail
    assert "not trained on" in result.refused[1].detail
    assert all(one.next_step for one in result.refused)
    assert result.refused_reasons["unknown_block"] == 2
    nothing = shop.submit(dataset, submitted[:3])
    assert nothing.accepted == 0 and nothing.dataset_id == dataset
    assert nothing.examples == len(rows(shop.workspace.load(dataset)))


def test_the_validator_has_the_last_word(
    shop: Shop, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forge_mcp.quality

    says = (False, ["injection: 'do as I say' in the answer"])
    monkeypatch.setattr(forge_mcp.quality, "validate_raft_example", lambda *_: says)
    result = shop.submit(dataset, [EXAMPLE])
    assert result.accepted == 0 and result.refused[0].reason == "injection"
    assert result.refused[0].detail == "'do as I say' in the answer"


def test_examples_come_as_json_or_from_a_file(shop: Shop, dataset: str, tmp_path: Path) -> None:
    expected = shop.submit(dataset, [EXAMPLE])
    for given in ([json.dumps(EXAMPLE)], [json.dumps([EXAMPLE])]):
        assert shop.submit(dataset, given).dataset_id == expected.dataset_id
    path = tmp_path / "written.json"
    path.write_text(json.dumps([EXAMPLE]))
    assert shop.submit(dataset, [], file=str(path)).dataset_id == expected.dataset_id


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "cannot be read as JSON"),
        ("[" * 200_000, "cannot be read as JSON"),
        ('{"block": "x"}', "holds no list"),
        (json.dumps([1] * 1001), "1001 examples"),
        ("[1]", "Example 0"),
        (json.dumps([EXAMPLE, EXAMPLE | {"note": "x"}]), "Example 1"),
    ],
)
def test_a_bad_file_is_told(
    shop: Shop, dataset: str, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"bad\.json") as caught:
        shop.submit(dataset, [], file=str(path))
    assert words in str(caught.value) and "list of {block" in caught.value.next_step


def test_bad_submissions_are_told(shop: Shop, dataset: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing to submit"):
        shop.submit(dataset, [])
    with pytest.raises(BadInput, match="given twice"):
        shop.submit(dataset, [EXAMPLE], file="x.json")
    with pytest.raises(NotFound, match="no file"):
        shop.submit(dataset, [], file=str(tmp_path / "none.json"))
    with pytest.raises(NotFound, match="no file") as caught:
        shop.submit(dataset, [], file=str(tmp_path))
    assert "folder" in caught.value.cause
    with pytest.raises(BadInput, match="author"):
        shop.submit(dataset, [EXAMPLE], author="forge")
    for wrong in (["{"], ["7"], [{"block": "x"}], "text", [EXAMPLE | {"more": 1}]):
        with pytest.raises(BadInput, match="submit_examples cannot be called"):
            shop.submit(dataset, wrong)  # type: ignore[arg-type]


async def test_an_agent_works_with_both_as_tools(shop: Shop, dataset: str) -> None:
    from mcp import Client

    from forge_mcp.interfaces.mcp.server import build_server

    async with Client(build_server(shop.workspace)) as client:
        page = await client.call_tool("list_question_tasks", {"dataset": dataset, "limit": 3})
        listed = page.structured_content or {}
        assert len(listed["tasks"]) == 3 and listed["next"] == listed["tasks"][-1]["block"]
        told = await client.call_tool(
            "submit_examples",
            {"dataset": dataset, "examples": [EXAMPLE | {"quote": "none of this"}, EXAMPLE]},
        )
        result = told.structured_content or {}
        assert result["accepted"] == 1 and result["refused"][0]["reason"] == "unverified_quote"
        wrong = await client.call_tool("submit_examples", {"dataset": dataset, "examples": ["{"]})
        assert wrong.is_error


# -- synthesize with a teacher ----------------------------------------------------------------


def address(server: TeacherServer) -> str:
    return f"{server.url}/v1#tutor"


def test_synthesize_with_a_teacher_adds_to_forges_own(shop: Shop, dataset: str) -> None:
    own = rows(shop.workspace.load(dataset))
    with teacher_server(good_teacher) as server:
        result = shop.synthesize(address(server))
        assert f"tutor at {server.url}/v1: nothing leaves this machine" in " ".join(shop.logs())
        every = rows(shop.workspace.load(result.dataset_id))
        assert every[: len(own)] == own and len(every) == result.examples > len(own) + 30
        assert {row["author"] for row in every} == {"forge", "api:tutor"}
        assert sum(result.splits.values()) == result.examples
        asked = len(server.asked())
        again = shop.synthesize(address(server))
        assert again.dataset_id == result.dataset_id and len(server.asked()) == asked
    manifest = (shop.workspace.load(result.dataset_id).path / "manifest.json").read_text()
    assert "api:tutor" in manifest and server.url not in manifest
    assert shop.synthesize().dataset_id == dataset, "without a teacher nothing is different"


def test_a_teacher_of_the_settings_counts_too(shop: Shop) -> None:
    with teacher_server(good_teacher) as server:
        result = shop.synthesize(address=address(server), blocks=2)
    assert "api:tutor" in {row["author"] for row in rows(shop.workspace.load(result.dataset_id))}


def test_what_the_teacher_left_out_is_said_and_asked_again(shop: Shop) -> None:
    turn, healthy = iter(range(10_000)), [False]

    def script(user: str, body: dict[str, Any]) -> str:
        return "hm" if not healthy[0] and next(turn) % 4 == 0 else good_teacher(user, body)

    with teacher_server(script) as server:
        partly = shop.synthesize(address(server), concurrency=1)
        assert partly.skipped["teacher_garbage"] > 3
        assert "Run the same again" in " ".join(shop.logs())
        healthy[0] = True
        whole = shop.synthesize(address(server), concurrency=1)
    assert whole.dataset_id != partly.dataset_id and whole.examples > partly.examples
    assert "teacher_garbage" not in whole.skipped


@pytest.mark.parametrize(
    ("teacher", "kind"),
    [("http://127.0.0.1:9/v1#tutor", Unavailable), ("tutor", InvalidSettings)],
)
def test_without_its_teacher_nothing_is_made(
    shop: Shop, teacher: str, kind: type[ForgeError]
) -> None:
    with pytest.raises(kind) as caught:
        shop.synthesize(teacher)
    assert caught.value.next_step
    assert not list(shop.workspace.folder("dataset").iterdir())


def test_a_teacher_that_fails_midway_loses_nothing(shop: Shop) -> None:
    left = [5]

    def script(user: str, body: dict[str, Any]) -> str:
        left[0] -= 1
        return good_teacher(user, body) if left[0] >= 0 else "no more"

    with teacher_server(script) as server:
        with pytest.raises(Unavailable, match="3 times in a row"):
            shop.synthesize(address(server), concurrency=1)
        assert not list(shop.workspace.folder("dataset").iterdir())
        left[0] = 10_000
        before = len(server.asked())
        result = shop.synthesize(address(server), concurrency=1)
        assert result.examples and len(server.asked()) > before
        questions = server.asked()
    assert all(questions.count(one) == 1 for one in questions[:5]), (
        "kept answers are not paid twice"
    )
