"""The tools' schemas, small: agents read all of them, so everything is said once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from forge_mcp.jobs.skills import JobResult
from forge_mcp.pipeline.skill import Skill, SkillResult
from forge_mcp.schemas.jobs import JobStatus

JOB_TOOL = "job_status"  # its schema spells out what a job is


def returned_model(skill: Skill) -> type[SkillResult]:
    """What the tool of a skill returns: the job, where the skill may take long."""
    return JobResult if skill.long else skill.result


def describers(skills: Iterable[Skill]) -> dict[str, str]:
    """Name of a result model → the tool whose schema spells it out."""
    found: dict[str, str] = {}
    for skill in skills:
        found.setdefault(skill.result.__name__, skill.name)
    return found | {JobResult.__name__: JOB_TOOL, JobStatus.__name__: JOB_TOOL}


def output_schema(skill: Skill, described: Mapping[str, str]) -> dict[str, Any]:
    """What a tool returns.

    Args:
        skill: of the tool.
        described: see `describers`.
    """
    name = skill.result.__name__
    if described[name] != skill.name:
        return _reference(described[name])
    schema = with_results_named(without_titles(skill.result.model_json_schema()), described)
    if not skill.long:
        return schema
    definitions = schema.pop("$defs", None)
    return {
        "type": "object",
        "description": f"A job: what {JOB_TOOL} returns.",
        "properties": {"result": {"anyOf": [schema, {"type": "null"}]}},
        **({"$defs": definitions} if definitions else {}),
    }


def without_titles(schema: Any) -> Any:
    """A JSON schema without the titles that pydantic derives from names: fewer tokens to read."""
    if isinstance(schema, list):
        return [without_titles(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in ("properties", "$defs") and isinstance(value, dict):
            kept[key] = {name: without_titles(inner) for name, inner in value.items()}
        else:
            kept[key] = without_titles(value)
    return kept


def _reference(name: str) -> dict[str, Any]:
    return {"type": "object", "description": f"The result of {name}."}


def with_results_named(schema: dict[str, Any], results: Mapping[str, str]) -> dict[str, Any]:
    """An output schema in which the results of other skills are named instead of spelled out.

    Args:
        schema: of a skill that returns other skills' results.
        results: name of a result model → the skill that returns it.
    """
    definitions = dict(schema.get("$defs", {}))
    for model in definitions.keys() & results.keys():
        definitions[model] = _reference(results[model])
    while True:
        text = json.dumps([{**schema, "$defs": {}}, definitions])
        unused = [name for name in definitions if f'"#/$defs/{name}"' not in text]
        if not unused:
            break
        for name in unused:
            del definitions[name]
    rest = {key: value for key, value in schema.items() if key != "$defs"}
    return {"$defs": definitions, **rest} if definitions else rest
