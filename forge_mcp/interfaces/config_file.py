"""`--config FILE`: training settings from a file like assets/pissa_config.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from forge_mcp.errors import InvalidSettings
from forge_mcp.settings import TrainingSettings

ROOT_KEY = "pissa_config"
BASE_KEY = "base_model"


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a file, as {"training": {…}, "project": {"base": …}}; every key is optional.

    `base_model` becomes the project's base for this call; a folder is relative to the file.

    Raises:
        InvalidSettings: it cannot be read, is no such file, or has a key that does not exist.
            Values are checked with all other settings.
    """
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _invalid(path, " ".join(str(error).split())) from error
    if not isinstance(parsed, Mapping) or list(parsed) != [ROOT_KEY]:
        raise _invalid(path, f"it must have one key, '{ROOT_KEY}', with the settings below it")
    values = parsed[ROOT_KEY]
    if not isinstance(values, Mapping) or not values:
        raise _invalid(path, f"below '{ROOT_KEY}' there are no settings")
    known = [*TrainingSettings.model_fields, BASE_KEY]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise _invalid(path, f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    settings: dict[str, Any] = {
        "training": {key: value for key, value in values.items() if key != BASE_KEY}
    }
    if BASE_KEY in values:
        base = values[BASE_KEY]
        if not isinstance(base, str):
            raise _invalid(path, f"{BASE_KEY} must be a name or a folder, not {base!r}")
        folder = path.absolute().parent / Path(base).expanduser()
        settings["project"] = {"base": str(folder) if folder.is_dir() else base}
    return settings


def _invalid(path: Path, cause: str) -> InvalidSettings:
    return InvalidSettings(
        f"The training configuration {path} cannot be used.",
        cause=cause,
        next_step="Correct it; the shipped assets/pissa_config.yaml explains every key.",
    )
