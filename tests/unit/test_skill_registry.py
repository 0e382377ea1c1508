"""Every skill is declared once and appears in every face; what ships with them is sound."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from forge_mcp.errors import BadInput, CorruptArtifact
from forge_mcp.interfaces.arguments import build_parser
from forge_mcp.interfaces.catalogue import render
from forge_mcp.interfaces.mcp.prompts import prompt_files, read_prompt
from forge_mcp.interfaces.shared_files import shared_root
from forge_mcp.jobs.skills import skills
from forge_mcp.pipeline.skill import MODULES, Skill

SPECIFIED = {
    "extract_data": "extract",
    "validate_data": "validate",
    "train_model": "train",
    "evaluate_model": "evaluate",
    "export_model": "export",
    "deploy_model": "deploy",
}
# The contract's result keys (DESIGN, "Contracts").
RESULT_KEYS = {
    "extract": "corpus_id path files blocks rejected languages skipped_files secrets_redacted",
    "synthesize": "dataset_id path examples preferences difficulty splits skipped",
    "list_question_tasks": "dataset_id total rules tasks next",
    "submit_examples": "dataset_id path accepted refused refused_reasons examples",
    "validate": "dataset_id passed quality_score metrics dropped report",
    "plan": "fits peak_memory_bytes advice",
    "train": "run_id path steps train_loss valid_loss tokens_per_second peak_memory_bytes "
    "stopped_early",
    "evaluate": "report_id path passed reasons base tuned improvement_over_base",
    "export": "export_id path gguf bytes quantization modelfile parity",
    "deploy": "deployment_id model target previous",
    "models": "active previous models",
    "activate": "active previous models",
    "rollback": "active previous models",
    "bundle": "path bytes sha256 model deployment_id contains_code files",
    "unbundle": "deployment_id model target imported verdict activated active previous",
    "query": "answer citations model",
    "retrain": "state deployed extract synthesize validate train evaluate export deploy",
    "pull": "base repo path bytes downloaded_bytes license parameters",
    "init": "project path repository base",
    "doctor": "ok checks machine",
    "gc": "applied removed kept freed_bytes damaged",
    "job_list": "jobs",
    "job_logs": "job_id lines",
    "job_clean": "forgotten",
} | dict.fromkeys(
    ["job_status", "job_wait", "job_cancel", "job_pause", "job_resume", "job_retry"],
    "job_id skill project state stage progress eta_seconds started_at error result dashboard_url",
)
WITHOUT_SECONDS = {"deploy", "models", "activate", "rollback", "init"}
LONG = {
    "extract",
    "synthesize",
    "validate",
    "plan",
    "train",
    "evaluate",
    "export",
    "retrain",
    "pull",
}
ALL = list(skills().values())
each_skill = pytest.mark.parametrize("skill", ALL, ids=[one.name for one in ALL])


def test_every_module_declares_its_skill() -> None:
    assert set(skills()) == set(RESULT_KEYS)
    for module in MODULES:
        assert importlib.import_module(f"forge_mcp.pipeline.{module}")
        declared = {one.function.__module__ for one in skills().values()}
        assert f"forge_mcp.pipeline.{module}" in declared


def test_what_may_take_long_is_a_job() -> None:
    assert {skill.name for skill in ALL if skill.long} == LONG


@each_skill
def test_declarations_are_complete(skill: Skill) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", skill.name)
    assert skill.title and len(skill.title) <= 40
    assert "Use this" in skill.description, "an agent chooses by 'Use this when …'"
    assert skill.examples and all(line.startswith("forge-mcp ") for line in skill.examples)
    for name, field in skill.request.model_fields.items():
        assert field.description, f"{skill.name}.{name} has no description"
    assert set(skill.positional) <= set(skill.request.model_fields)
    assert not (skill.read_only and skill.destructive)


@each_skill
def test_result_keys_of_the_contract(skill: Skill) -> None:
    keys = {field.alias or name for name, field in skill.result.model_fields.items()}
    expected = set(RESULT_KEYS[skill.name].split())
    if skill.name not in WITHOUT_SECONDS and not skill.name.startswith("job_"):
        expected.add("seconds")
    assert expected <= keys, f"missing: {expected - keys}"


@each_skill
def test_every_skill_has_a_command_and_its_examples_parse(skill: Skill) -> None:
    import shlex

    parser = build_parser(skills())
    for line in skill.examples:
        assert parser.parse_args(shlex.split(line)[1:]).skill == skill.name
    needed = [name for name in skill.positional if skill.request.model_fields[name].is_required()]
    words = [*skill.words, *needed, "--detach"]
    if skill.long:
        assert parser.parse_args(words).detach is True
    else:
        with pytest.raises(BadInput, match="--detach"):
            parser.parse_args(words)


async def test_every_skill_is_a_tool_with_its_hints() -> None:
    from forge_mcp.interfaces.mcp.server import build_server

    tools = {tool.name: tool for tool in await build_server().list_tools()}
    assert list(tools) == [skill.name for skill in ALL if skill.tool]
    assert skills().keys() - tools == {"job_wait", "job_clean"}
    for name, tool in tools.items():
        skill = skills()[name]
        description = tool.description or ""
        assert description.startswith(inspect.cleandoc(skill.description))
        assert ("job_status(job_id, wait_seconds=60)" in description) == skill.long
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint == skill.read_only
        assert tool.annotations.destructive_hint == skill.destructive
        assert tool.annotations.idempotent_hint == skill.idempotent
        assert tool.annotations.open_world_hint == skill.open_world
        project = set() if "job_id" in skill.request.model_fields else {"project"}
        assert set(tool.input_schema.get("properties", ())) == {
            *skill.request.model_fields,
            *project,
        }


async def test_a_result_is_described_once() -> None:
    from forge_mcp.interfaces.mcp.server import build_server

    schemas = {tool.name: tool.output_schema or {} for tool in await build_server().list_tools()}
    assert {"job_id", "state", "result"} <= set(schemas["job_status"]["properties"])
    assert schemas["job_cancel"] == {"type": "object", "description": "The result of job_status."}
    assert schemas["rollback"] == {"type": "object", "description": "The result of models."}
    train = schemas["train"]["properties"]["result"]["anyOf"][0]
    assert "run_id" in train["properties"]
    stages = schemas["retrain"]["$defs"]
    assert stages["TrainResult"] == {"type": "object", "description": "The result of train."}
    assert "DataQualityMetrics" not in stages
    jobs = schemas["job_list"]["$defs"]
    assert jobs == {"JobStatus": {"type": "object", "description": "The result of job_status."}}


def test_skills_yaml_is_fresh() -> None:
    text = (shared_root() / "skills.yaml").read_text(encoding="utf-8")
    assert text == render(skills()), "run: python -m forge_mcp.interfaces.catalogue"
    parsed: dict[str, Any] = yaml.safe_load(text)
    assert [one["name"] for one in parsed["skills"]] == list(skills())
    aliases = {one["name"]: one for one in parsed["aliases"]}
    for alias, name in SPECIFIED.items():
        assert aliases[alias]["skill"] == name
        assert aliases[alias]["command"] == skills()[name].command
    by_name = {one["name"]: one for one in parsed["skills"]}
    assert by_name["retrain"]["job"] and by_name["retrain"]["tool"]
    assert by_name["job_wait"]["command"] == "forge-mcp jobs wait JOB_ID"
    assert not by_name["job_wait"]["tool"]


def test_catalogue_check_tells_a_stale_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from forge_mcp.interfaces import catalogue

    (tmp_path / "skills.yaml").write_text("stale")
    monkeypatch.setattr(catalogue, "shared_root", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["catalogue", "--check"])
    assert catalogue.main() == 1
    monkeypatch.setattr(sys, "argv", ["catalogue"])
    assert catalogue.main() == 0
    monkeypatch.setattr(sys, "argv", ["catalogue", "--check"])
    assert catalogue.main() == 0


def test_listing_the_skills_stays_light() -> None:
    script = (
        "import sys; from forge_mcp.jobs.skills import skills; skills(); "
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'matplotlib', 'numpy', 'tree_sitter', 'mcp', "
        "'git', 'gguf', 'xllamacpp', 'ollama', 'httpx', 'bm25s', 'dbos', 'sqlalchemy', 'psutil'} "
        "& set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- prompts/ and skills/ ---------------------------------------------------------------------

PROMPTS = prompt_files()
SKILL_FILES = sorted((shared_root() / "skills").glob("*/SKILL.md"))
CODE = re.compile(r"`([^`\n]+)`")


def known_words() -> set[str]:
    """Every tool, request field and result key that a text may name in back-ticks."""
    words: set[str] = set(skills())
    for skill in skills().values():
        words |= {"project"}
        for model in (skill.request, skill.result):
            words |= {field.alias or name for name, field in model.model_fields.items()}
            for field in model.model_fields.values():  # rows of a list have names too
                for row in typing.get_args(field.annotation):
                    words |= set(getattr(row, "model_fields", ()))
    return words


def unknown_names(text: str) -> set[str]:
    """Single words in back-ticks that look like names of ours and are none."""
    known = known_words()
    # Words that are no names of ours: values, files, and code of the example repository.
    other = {
        "state", "succeeded", "refused", "llamacpp", "ollama", "main", "passed", "created",
        "exclude", "include", "error", "forge", "next_step", "path", "start_line", "end_line",
        "failed", "cancelled", "paused", "running", "queued", "pausing",
    }  # fmt: skip
    words = {one for one in CODE.findall(text) if re.fullmatch(r"[a-z][a-z_]+", one)}
    return words - known - other


def test_the_designs_prompts_and_skills_ship() -> None:
    assert {one.name for one in PROMPTS} == {
        "repo_guardian", "mission_control", "retrain", "review_data", "review_deployment",
    }  # fmt: skip
    assert {path.parent.name for path in SKILL_FILES} == {
        "forge-retrain", "forge-improve-data", "forge-deploy-rollback", "forge-ask",
    }  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS, ids=[one.name for one in PROMPTS])
def test_prompts_name_only_what_exists(prompt: Any) -> None:
    assert unknown_names(prompt.body) == set()
    assert "{{" not in prompt.render()
    filled = prompt.render(**{name: f"<{name}>" for name in prompt.arguments})
    assert all(f"<{name}>" in filled for name in prompt.arguments)


@pytest.mark.parametrize("path", SKILL_FILES, ids=[path.parent.name for path in SKILL_FILES])
def test_agent_skills_follow_the_format(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert set(fields) <= {"name", "description", "license", "compatibility", "metadata"}
    assert fields["name"] == path.parent.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fields["name"]) and len(fields["name"]) <= 64
    assert 1 <= len(fields["description"]) <= 1024
    assert len(str(fields["compatibility"])) <= 500
    assert len(text.splitlines()) < 500
    assert unknown_names(body) == set()
    named = set(re.findall(r"\b(forge-[a-z-]+[a-z])\b", body)) - {"forge-mcp", "forge-nano"}
    assert named <= {one.parent.name for one in SKILL_FILES}
    sections = load_sections()
    for setting in re.findall(r"`([a-z]+\.[a-z_]+)`", body):
        section, key = setting.split(".")
        if section in sections:
            assert key in sections[section], setting
    for command in re.findall(r"forge-mcp ([a-z]+)", body):
        assert command in {*(one.words[0] for one in ALL), "command", "serve"}, command


def load_sections() -> dict[str, Any]:
    from forge_mcp.settings import defaults

    return defaults()


@pytest.mark.parametrize(
    "text",
    [
        "no head",
        "---\ntitle: x\ndescription: y\n---\n{{slot}}",
        "---\ntitle: x\ndescription: y\narguments: {a: b}\ndefaults: {a: c}\n---\nno slot",
        "---\njust text\n---\nbody",
    ],
)
def test_a_damaged_prompt_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.md"
    path.write_text(text)
    with pytest.raises(CorruptArtifact, match=r"bad\.md"):
        read_prompt(path)
