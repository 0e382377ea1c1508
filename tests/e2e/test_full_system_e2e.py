"""The whole line on real code that forge-nano has never seen, as a user would run it.

The repository is made of modules of the standard library that are held out of forge-nano's
training (scripts/nano/data.py, HELD_OUT), so nothing has to be downloaded. What is shown is that
everything works on what the step before returned. So few steps on so few modules in a style that
the base knows already make no better model, and the gate would rightly say no: it stands open.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
MODULES = ("json", "configparser.py", "csv.py", "difflib.py", "mailbox.py", "statistics.py")
STEPS = 30
SHORT = {
    "FORGE_JUDGING__MAX_PERPLEXITY_RATIO": "1000",
    "FORGE_JUDGING__MAX_EXAMPLES": "12",
    "FORGE_JUDGING__PERPLEXITY_EXAMPLES": "32",
    "FORGE_JUDGING__MAX_TOKENS": "96",
    "FORGE_JUDGING__CLOSED_BOOK_EXAMPLES": "8",
    "FORGE_JUDGING__TEXT_TOKENS": "512",
    "FORGE_JUDGING__RECONSTRUCTION_BLOCKS": "2",
}


class User:
    """Types `forge-mcp` commands in a repository."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "held-out-library"
        self.repository.mkdir()
        library = Path(sysconfig.get_paths()["stdlib"])
        for name in MODULES:
            if (library / name).is_dir():
                shutil.copytree(library / name, self.repository / name)
            else:
                shutil.copyfile(library / name, self.repository / name)
        self.environment = os.environ | SHORT | {"FORGE_HOME": str(folder / "forge")}

    def types(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "forge_mcp.interfaces.cli", *arguments, "--json"],
            cwd=self.repository,
            env=self.environment,
            stdout=subprocess.PIPE,
            check=False,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == 0, result
        return result


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def line(user: User) -> dict[str, Any]:
    return user.types("retrain", ".", "--max-steps", str(STEPS))


def test_the_line_ends_deployed(line: dict[str, Any]) -> None:
    assert line["state"] == "succeeded"
    assert line["deployed"]
    assert line["train"]["steps"] == STEPS


def test_the_f16_file_is_the_trained_model_and_stops(user: User, line: dict[str, Any]) -> None:
    exported = user.types("export", line["train"]["run_id"], "--quantization", "f16")
    assert exported["parity"]["argmax_agreement"] >= 0.99
    deployed = user.types("deploy", exported["export_id"])
    answers = [
        user.types("query", question, "--model", deployed["model"])
        for question in (
            "What is the signature of `register_dialect`?",
            "Where is `_mean_stdev` defined?",
            "What are the parameters of `get_close_matches`?",
        )
    ]
    assert any(answer["complete"] for answer in answers), "none came to an answer and stopped"
    assert user.types("rollback")["active"] == line["deploy"]["model"]


def test_the_deployed_model_answers_with_citations(user: User, line: dict[str, Any]) -> None:
    questions = [
        row["question"]
        for row in map(
            json.loads, (Path(line["synthesize"]["path"]) / "examples.jsonl").open(encoding="utf-8")
        )
        if row["split"] == "test" and not row["oracle_absent"] and row["difficulty"] == "easy"
    ][:6]
    answers = [user.types("query", question) for question in questions]
    cited = [citation for answer in answers for citation in answer["citations"]]
    assert cited, "no quote of the model was found in the repository"
    for citation in cited:
        lines = (user.repository / citation["path"]).read_text(encoding="utf-8").splitlines()
        assert 1 <= citation["start_line"] <= citation["end_line"] <= len(lines)
