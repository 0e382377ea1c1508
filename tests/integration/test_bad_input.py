"""Bad input through the command line: one clear error, the right exit code, nothing changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from driven_line import Line

pytestmark = pytest.mark.integration


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A line with a corpus and a validated dataset; tests copy what they damage."""
    line = Line(tmp_path_factory.mktemp("made"))
    _, corpus = line.run("extract", ".")
    _, dataset = line.run("synthesize", corpus["corpus_id"])
    code, checked = line.run("validate", dataset["dataset_id"])
    assert code == 0
    (line.home / "ids.json").write_text(
        json.dumps([corpus["corpus_id"], dataset["dataset_id"], checked["dataset_id"]])
    )
    return line


@pytest.fixture
def damaged(made: Line, tmp_path: Path) -> Line:
    """A copy of `made`'s workspace that a test may break; the repository is the same one."""
    line = Line(tmp_path)
    line.repository = made.repository
    shutil.copytree(made.home, line.home)
    return line


def ids(line: Line) -> list[str]:
    found: list[str] = json.loads((line.home / "ids.json").read_text())
    return found


def refused(line: Line, code: int, kind: str, *arguments: str, **environment: str) -> str:
    """The message of a refusal, after checking code, kind, next step and that nothing changed."""
    before = line.files() if line.home.exists() else {}
    exit_code, result = line.run(*arguments, **environment)
    error = result["error"]
    assert (exit_code, error["code"]) == (code, kind), error
    assert error["next_step"]
    assert line.files() == before
    return f"{error['message']} {error['cause']} {error['next_step']}"


def test_a_path_that_is_not_there(line: Line) -> None:
    assert "no-such-folder" in refused(line, 2, "not_found", "retrain", "no-such-folder")


def test_a_file_where_a_folder_is_meant(line: Line) -> None:
    (line.repository / "file.txt").write_text("x")
    assert "file.txt" in refused(line, 2, "not_found", "extract", "file.txt")


def test_a_folder_without_code(line: Line) -> None:
    (line.repository / "empty").mkdir()
    (line.repository / "empty" / "notes.txt").write_text("nothing to learn")
    text = refused(line, 2, "bad_input", "retrain", "empty")
    assert "Python" in text or "python" in text


def test_an_unknown_model(made: Line) -> None:
    text = refused(made, 2, "not_found", "train", ids(made)[2], "--base", "no-such-model")
    assert "no-such-model" in text
    assert "forge-nano" in text


def test_a_base_folder_that_is_no_model(made: Line, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    text = refused(
        made, 2, "unsupported_model", "train", ids(made)[2], "--base", f"{tmp_path}/base"
    )
    assert "config.json" in text


def test_a_dataset_that_was_not_validated(made: Line) -> None:
    text = refused(made, 2, "bad_input", "train", ids(made)[1])
    assert "forge-mcp validate" in text


def test_a_dataset_that_fails_its_gate(damaged: Line) -> None:
    strict = {"FORGE_QUALITY__MIN_EXAMPLES": "100000"}
    code, result = damaged.run("validate", ids(damaged)[1], **strict)
    assert code == 3
    assert result["passed"] is False
    assert result["reasons"]
    code, result = damaged.run("retrain", ".", **strict)
    assert code == 3
    assert result["state"] == "refused"
    assert result["train"] is None
    assert not list((damaged.home / "runs").glob("*"))


def test_a_corrupt_file_in_the_workspace(damaged: Line) -> None:
    corpus, _, dataset = ids(damaged)
    path = damaged.home / "datasets" / dataset / "train.jsonl"
    path.write_text(path.read_text()[:-40])
    assert "train.jsonl" in refused(damaged, 1, "corrupt_artifact", "train", dataset)
    path = damaged.home / "corpora" / corpus / "manifest.json"
    path.write_text("{")
    assert corpus in refused(damaged, 1, "corrupt_artifact", "synthesize", corpus)


def test_a_corrupt_registry(damaged: Line) -> None:
    for path in damaged.home.glob("forge.db*"):
        path.unlink()
    (damaged.home / "forge.db").write_bytes(b"no database at all " * 300)
    assert "forge.db" in refused(damaged, 1, "corrupt_artifact", "models")


def test_wrong_settings_are_named(line: Line) -> None:
    (line.repository / "forge.toml").write_text("[training]\nrnak = 3\n")
    assert "training.rnak" in refused(line, 2, "invalid_settings", "extract", ".")


def test_nothing_deployed_yet(line: Line) -> None:
    line.run("init")
    assert "retrain" in refused(line, 2, "not_found", "query", "What is this?")
    code, result = line.run("rollback")
    assert (code, result["error"]["code"]) == (2, "not_found")


def test_an_unreadable_file_is_counted_not_fatal(line: Line) -> None:
    # Broken bytes, which no permission of the user running the tests can make readable.
    (line.repository / "broken.py").write_bytes(b"def f():\n    return '\xff\xfe\x00'\n" * 5)
    code, result = line.run("extract", ".")
    assert code == 0
    assert sum(result["skipped_files"].values()) > 1
