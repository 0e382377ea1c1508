"""The command line's grammar, made from the skills' request models."""

from __future__ import annotations

import argparse
import inspect
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from pydantic.fields import FieldInfo

import forge_mcp
from forge_mcp.errors import BadInput
from forge_mcp.pipeline.skill import Skill
from forge_mcp.settings import merge

SERVE_HELP = "serve the skills to an agent over MCP (stdio)"
GROUPS = {"jobs": "look after jobs: skills that were started with --detach, or by an agent"}
DETACH_HELP = "queue it as a job and return at once; 'forge-mcp jobs' follows and stops jobs"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are errors of ours: exit code 2, JSON with --json."""

    def error(self, message: str) -> NoReturn:
        """Raises:
        BadInput: always.
        """
        raise BadInput(
            f"{self.prog}: {message}.", next_step=f"See '{self.prog} --help' for what it takes."
        )


def build_parser(skills: Mapping[str, Skill]) -> Parser:
    """The whole grammar: one command a skill, and `serve`.

    What it parses carries the name of the skill in `skill`; a group of commands that was given
    alone carries its parser in `group` instead.
    """
    parser = Parser(
        prog="forge-mcp",
        description="Make, judge and run a local language model that knows one repository.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 3 a gate said no, 130 cancelled",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"forge-mcp {forge_mcp.__version__}")
    _add_common(parser, "before_")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    for skill in skills.values():
        place = commands
        if len(skill.words) == 2:
            group = skill.words[0]
            place = groups[group] = groups.get(group) or _add_group(commands, group)
        command = place.add_parser(
            skill.words[-1],
            help=skill.title.lower(),
            description=inspect.cleandoc(skill.description),
            epilog=_examples(skill),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for name, field in skill.request.model_fields.items():
            _add_field(command, name, field, name in skill.positional)
        if skill.long:
            command.add_argument(
                "--detach", action="store_true", default=argparse.SUPPRESS, help=DETACH_HELP
            )
        _add_common(command, "")
        command.set_defaults(skill=skill.name)
    commands.add_parser("serve", help=SERVE_HELP, description=SERVE_HELP, allow_abbrev=False)
    return parser


def common_options(parsed: argparse.Namespace) -> tuple[str | None, dict[str, Any]]:
    """--project, and --config with the merged --set over it, from before and after the command.

    Raises:
        BadInput: a --set that is not SECTION.KEY=VALUE.
        InvalidSettings: see `config_file.read_config`.
    """
    given = vars(parsed)
    project = given.get("project") or given.get("before_project")
    overrides: dict[str, Any] = {}
    if config := given.get("config") or given.get("before_config"):
        from forge_mcp.interfaces.config_file import read_config

        overrides = read_config(Path(config))
    for text in [*(given.get("before_set") or ()), *(given.get("set") or ())]:
        overrides = merge(overrides, parse_setting(text))
    return project, overrides


def parse_setting(text: str) -> dict[str, Any]:
    """'training.rank=16' as {"training": {"rank": 16}}; a value that is no JSON is text.

    Raises:
        BadInput: it is not of that form.
    """
    key, equals, value = text.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise BadInput(
            f"--set {text}: this is not SECTION.KEY=VALUE.",
            next_step="Write e.g. --set training.rank=8; docs/configuration.md lists the keys.",
        )
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    nested: dict[str, Any] = {name: parsed}
    if "." in name:
        first, _, last = name.partition(".")
        nested = {first: {last: parsed}}
    return {section: nested}


def request_fields(skill: Skill, parsed: argparse.Namespace) -> dict[str, Any]:
    """What the command line said of the skill's request; fields left away are left away."""
    given = vars(parsed)
    return {name: given[name] for name in skill.request.model_fields if name in given}


def _add_group(commands: Any, name: str) -> Any:
    """A command that only holds others; returns where to add them."""
    parser = commands.add_parser(
        name, help=GROUPS[name], description=GROUPS[name], allow_abbrev=False
    )
    parser.set_defaults(group=parser)
    return parser.add_subparsers(metavar="COMMAND")


def _add_common(parser: argparse.ArgumentParser, prefix: str) -> None:
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--json",
        action="store_true",
        dest=f"{prefix}json",
        default=argparse.SUPPRESS,
        help="print exactly one JSON object on stdout: the result, or the error",
    )
    group.add_argument(
        "--project",
        metavar="NAME",
        dest=f"{prefix}project",
        default=argparse.SUPPRESS,
        help="a project used before, or the path of a repository (default: the one stood in)",
    )
    group.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        dest=f"{prefix}set",
        default=argparse.SUPPRESS,
        help="a setting for this call, e.g. training.rank=8; repeatable",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        dest=f"{prefix}config",
        default=argparse.SUPPRESS,
        help="training settings for this call from a YAML file like assets/pissa_config.yaml; "
        "--set wins over it",
    )


def _add_field(parser: argparse.ArgumentParser, name: str, field: FieldInfo, place: bool) -> None:
    """One field of a request as an argument. Values stay text: the model converts and checks."""
    kind, is_list = _plain_type(field.annotation)
    options: dict[str, Any] = {"help": _help(field), "default": argparse.SUPPRESS}
    if typing.get_origin(kind) is Literal:
        options["choices"] = [str(choice) for choice in typing.get_args(kind)]
    if place:
        options["metavar"] = name.upper()
        if is_list:
            options["nargs"] = "+" if field.is_required() else "*"
        elif not field.is_required():
            options["nargs"] = "?"
        parser.add_argument(name, **options)
        return
    if kind is bool and not is_list:
        options["action"] = argparse.BooleanOptionalAction
    elif is_list:
        options["action"] = "append"
    if kind is not bool and "choices" not in options:
        options["metavar"] = name.upper()
    options["required"] = field.is_required()
    parser.add_argument(f"--{name.replace('_', '-')}", dest=name, **options)


def _plain_type(annotation: Any) -> tuple[Any, bool]:
    """A field's type without `| None`, and whether it is a list of it."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        inner = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return _plain_type(inner[0]) if len(inner) == 1 else (str, False)
    if typing.get_origin(annotation) is list:
        return _plain_type(typing.get_args(annotation)[0])[0], True
    return annotation, False


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is None or default == [] or "default" in text.lower():
        return text
    return f"{text.rstrip('.')} (default: {default})"


def _examples(skill: Skill) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in skill.examples)]) * bool(
        skill.examples
    )
