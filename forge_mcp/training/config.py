"""A training configuration in a file of its own, like assets/pissa_config.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from forge_mcp.errors import InvalidSettings
from forge_mcp.settings import TrainingSettings

ROOT_KEY = "pissa_config"
BASE_KEY = "base_model"


class FineTuneConfig(NamedTuple):
    """What a file says: its base, if it names one, and values of TrainingSettings."""

    base_model: str | None
    training: dict[str, Any]


def read_config(path: Path) -> FineTuneConfig:
    """Read a YAML file like assets/pissa_config.yaml; every key is optional.

    Raises:
        InvalidSettings: it cannot be read, is no such file, or has a key that does not exist.
    """
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _invalid(path, str(error)) from error
    if not isinstance(parsed, Mapping) or list(parsed) != [ROOT_KEY]:
        raise _invalid(path, f"it must have one key, '{ROOT_KEY}', with the settings below it")
    values = parsed[ROOT_KEY]
    if not isinstance(values, Mapping):
        raise _invalid(path, f"'{ROOT_KEY}' must hold settings, one a line")
    known = {*TrainingSettings.model_fields, BASE_KEY}
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise _invalid(
            path,
            f"unknown: {', '.join(unknown)}; known are {', '.join(sorted(known))}",
        )
    base = values.get(BASE_KEY)
    if base is not None and not isinstance(base, str):
        raise _invalid(path, f"'{BASE_KEY}' must be a name or a folder, not {base!r}")
    return FineTuneConfig(base, {key: values[key] for key in values if key != BASE_KEY})


def with_config(settings: TrainingSettings, config: FineTuneConfig, path: Path) -> TrainingSettings:
    """`settings` with those of a file over it.

    Raises:
        InvalidSettings: a value out of its bounds, or values that do not go together.
    """
    try:
        return TrainingSettings.model_validate(settings.model_dump() | config.training)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise _invalid(path, f"{key}: {first['msg']}".removeprefix(": ")) from error


def _invalid(path: Path, cause: str) -> InvalidSettings:
    return InvalidSettings(
        f"The training configuration {path} cannot be used.",
        cause=cause,
        next_step="Correct it; the shipped assets/pissa_config.yaml explains every key.",
    )
