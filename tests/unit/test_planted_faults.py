"""Broken examples of more than a hundred kinds are told from good ones by the quality score.

The dataset is made from this project's own source, so nothing is fetched.
benchmarks/data_checker.py does the same on three repositories.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import fault_trials
import pytest
from fault_trials import Trial, plan, rank_auc, rounds, run_trial
from mining_helpers import mine, settings
from planted_faults import BENCHMARK_PROBLEM, FAULTS, Broken, World

import forge_mcp
from forge_mcp.raft import build_dataset
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.raft_examples import RaftExample
from forge_mcp.settings import QualitySettings

GOOD = 500
CASES = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Examples about the miner and the jobs."""
    root = tmp_path_factory.mktemp("source") / "forge"
    for room in ("mining", "jobs"):
        shutil.copytree(
            Path(forge_mcp.__file__).parent / room,
            root / room,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    chosen = settings(include_tests=False)
    mined = mine(root, chosen)
    blocks = [CodeBlock.model_validate_json(line) for line in mined.blocks.splitlines()]
    others = [RejectedBlock.model_validate_json(line) for line in mined.rejected.splitlines()]
    built = build_dataset(blocks, chosen.raft, others=others)
    documents = {document.id: document for document in built.documents}
    return World(documents, built.examples[:GOOD])


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> QualitySettings:
    """The defaults, with a benchmark to look for."""
    problems = tmp_path_factory.mktemp("benchmark") / "HumanEval.jsonl"
    problems.write_text(json.dumps(BENCHMARK_PROBLEM) + "\n")
    return settings().quality.model_copy(update={"humaneval_path": str(problems)})


@pytest.fixture(scope="module")
def trial(world: World, quality: QualitySettings) -> Trial:
    return run_trial(world.examples, world.documents, quality, CASES)


def test_there_are_more_than_sixty_kinds() -> None:
    assert len(FAULTS) >= 60
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({fault.description for fault in FAULTS}) == len(FAULTS)


def test_every_kind_is_planted(trial: Trial) -> None:
    assert trial.not_planted == []
    assert {fault.name for fault in FAULTS} == trial.by_kind().keys()


def test_the_score_tells_broken_from_good(trial: Trial) -> None:
    assert trial.auc() >= 0.95, trial.table()


def test_every_kind_is_told(trial: Trial) -> None:
    assert trial.unseen(0.8) == {}, trial.table()


def test_no_good_example_is_dropped(trial: Trial) -> None:
    assert len(trial.good) == GOOD
    dropped = [(example.id, example.question, why) for example, why in trial.good_dropped]
    assert dropped == []


def test_every_fault_breaks_something(world: World) -> None:
    cases, _ = plan(world.examples, world.documents, range(len(world.examples)), CASES)
    for case in cases:
        before = world.examples[case.index]
        documents = {i: world.documents.get(i) for i in case.broken.documents}
        assert case.broken.example != before or case.broken.documents != documents, case.fault.name
    assert cases == plan(world.examples, world.documents, range(len(world.examples)), CASES)[0]


def test_broken_documents_touch_no_other_case(world: World) -> None:
    cases, _ = plan(world.examples, world.documents, range(len(world.examples)), CASES)
    packed = rounds(cases, world.examples, 60)
    assert sum(len(together) for together in packed) == len(cases)
    for together in packed:
        assert len(together) <= 60
        assert len({case.index for case in together}) == len(together)
        for case in together:
            others = [world.examples[other.index] for other in together if other is not case]
            shown = {i for e in others for i in (*e.oracle_ids, *e.distractor_ids)}
            assert not shown & case.broken.documents.keys()


def test_a_blind_validator_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(
        examples: Sequence[RaftExample], documents: object, settings: object
    ) -> SimpleNamespace:
        score = SimpleNamespace(value=0.8)
        judged = [SimpleNamespace(example=e, score=score, reasons=[]) for e in examples]
        return SimpleNamespace(judged=judged)

    monkeypatch.setattr(fault_trials, "validate_dataset", blind)
    found = run_trial(world.examples[:200], world.documents, settings().quality, 2)
    assert found.auc() == 0.5
    assert found.unseen().keys() == found.by_kind().keys()
    assert "| question_empty | 2 | 0 | 0 | 0.80 |" in found.table()


def test_a_fault_that_fits_nowhere_is_named(world: World) -> None:
    plain = [e for e in world.examples if e.fact.kind == "location" and not e.closed_book][:5]
    assert "wrong_default" in plan(plain, world.documents, range(len(plain)), 1)[1]


def test_auc_is_the_share_of_ordered_pairs() -> None:
    assert rank_auc([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert rank_auc([0.1], [0.9]) == 0.0
    assert rank_auc([0.5, 0.7], [0.5, 0.6]) == 0.625


def test_broken_examples_keep_their_documents_by_default(world: World) -> None:
    assert Broken(world.examples[0]).documents == {}
