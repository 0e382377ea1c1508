"""Settings: defaults.yaml < forge.toml < environment < call.

`load_settings` is the one way in. Every default stands in assets/defaults.yaml, which these
models only type and bound; a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import math
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from forge_mcp.errors import InvalidSettings

PROJECT_FILE = "forge.toml"
Share = Field(ge=0.0, le=1.0)

# Weights that share a scale, the usual number first; fixed by the format but for affine and NF4.
QUANTIZATION_GROUP_SIZES = {
    "affine": (64, 32, 128),
    "nf4": (64, 32, 128),
    "mxfp4": (32,),
    "nvfp4": (16,),
}


class Section(BaseModel):
    """One table of the settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class ProjectSettings(Section):
    """What `forge-mcp init` writes into a repository."""

    name: str | None
    include: list[str]
    exclude: list[str]
    base: str
    system_prompt: str | None
    allow_licenses: list[str]


class MiningSettings(Section):
    """Which blocks of a repository are trained on."""

    min_tokens: int = Field(ge=0)
    max_tokens: PositiveInt
    max_file_bytes: PositiveInt
    require_docstring: bool
    include_private: bool
    include_tests: bool
    workers: int = Field(ge=0)


class RaftSettings(Section):
    """How examples are made from blocks."""

    seed: int
    examples_per_block: PositiveInt
    distractors: int = Field(ge=0, le=8)
    oracle_absent_share: float = Share
    oracle_absent_mode: Literal["abstain", "memorise"]
    closed_book_share: float = Share
    code_share: float = Share
    valid_share: float = Share
    test_share: float = Share
    max_document_chars: PositiveInt
    preferences: bool


class TeacherSettings(Section):
    """A language model that writes further questions; without an address none is asked."""

    address: str
    api_key_variable: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    blocks: int = Field(ge=0)
    questions_per_block: int = Field(ge=0, le=10)
    paraphrases_per_block: int = Field(ge=0, le=10)
    temperature: float | None = Field(ge=0, le=2)
    max_tokens: int = Field(ge=64)
    json_schema: bool
    concurrency: int = Field(ge=1, le=32)
    timeout_seconds: float = Field(gt=0)
    retries: int = Field(ge=0, le=10)
    max_wait_seconds: float = Field(ge=0)
    max_failures: PositiveInt


class QualitySettings(Section):
    """The quality gate of `validate`."""

    min_quality_score: float = Share
    min_oracle_relevance: float = Share
    max_distractor_relevance: float = Share
    duplicate_threshold: float = Field(ge=0.5, le=1.0)
    min_examples: int = Field(ge=1)
    humaneval_path: str


class RetrievalSettings(Section):
    """How `query` finds the blocks that it gives to the model."""

    documents: int = Field(ge=1, le=16)
    method: Literal["bm25", "dense", "hybrid"]
    encoder: str


class TrainingSettings(Section):
    """How a run is trained: see assets/pissa_config.yaml. Steps are optimiser steps."""

    init_method: Literal["pissa", "lora", "rslora", "dora"]
    rank: PositiveInt
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str]
    svd_niter: Literal["auto", "exact"] | NonNegativeInt
    qpissa_iterations: int = Field(ge=1, le=20)
    quantization_type: Literal["affine", "nf4", "mxfp4", "nvfp4"]
    quantization_bits: Literal[4, 8]
    quantization_group_size: Literal[16, 32, 64, 128] | None
    double_quantization: bool
    optimizer: Literal["adamw", "adamw_8bit"]
    learning_rate: float = Field(gt=0, le=10)
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    gradient_checkpointing: bool
    num_train_epochs: float = Field(gt=0)
    max_steps: int = Field(ge=0)
    max_seq_length: int = Field(ge=16)
    max_grad_norm: float = Field(gt=0)
    reasoning_weight: float = Field(ge=0)
    quote_weight: float = Field(ge=0)
    answer_weight: float = Field(ge=0)
    eval_strategy: Literal["steps", "epoch", "no"]
    eval_steps: PositiveInt
    save_steps: PositiveInt
    keep_checkpoints: PositiveInt
    valid_examples: PositiveInt
    early_stopping_patience: int = Field(ge=0)
    memory_warning_share: float = Share
    memory_stop_share: float = Share
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]]
    seed: int

    @field_validator("init_method", mode="before")
    @classmethod
    def _specification_name(cls, value: object) -> object:
        """The specification calls LoRA's start "gaussian"."""
        return "lora" if value == "gaussian" else value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        allowed = QUANTIZATION_GROUP_SIZES[self.quantization_type]
        if self.quantization_bits == 8 and self.quantization_type != "affine":
            raise ValueError(f"{self.quantization_type} has 4 bits; only affine has 8")
        if self.quantization_group_size not in (None, *allowed):
            raise ValueError(
                f"{self.quantization_type} has groups of {' or '.join(map(str, allowed))}, "
                f"not {self.quantization_group_size}"
            )
        if self.reasoning_weight + self.quote_weight + self.answer_weight == 0:
            raise ValueError("the weights of reasoning, quotes and answer are all 0")
        if self.memory_stop_share < self.memory_warning_share:
            raise ValueError("memory_stop_share is below memory_warning_share")
        return self

    @property
    def group_size(self) -> int:
        """Weights that share a scale: as set, else the usual one of the quantisation."""
        usual = QUANTIZATION_GROUP_SIZES[self.quantization_type][0]
        return self.quantization_group_size or usual

    @property
    def scaling(self) -> float:
        """What the adapter's output is multiplied by: alpha / r; rsLoRA's is alpha / sqrt(r)
        (arXiv 2312.03732)."""
        divisor = math.sqrt(self.rank) if self.init_method == "rslora" else self.rank
        return self.lora_alpha / divisor

    @property
    def examples_per_step(self) -> int:
        """Examples whose gradients one optimiser step takes together."""
        return self.batch_size * self.gradient_accumulation_steps


class JudgingSettings(Section):
    """The gate between training and deployment."""

    max_examples: PositiveInt
    closed_book_examples: int = Field(ge=0)
    perplexity_examples: PositiveInt
    text_tokens: int = Field(ge=0)
    reconstruction_blocks: int = Field(ge=0)
    max_tokens: PositiveInt
    minutes: float = Field(ge=0)
    humaneval: str
    humaneval_problems: PositiveInt
    humaneval_samples: PositiveInt
    humaneval_temperature: float = Field(ge=0, le=2)
    max_perplexity_ratio: float = Field(gt=0)
    target_accuracy: float = Share
    target_hallucination_rate: float = Share
    target_compiling: float = Share
    target_ms_per_token: float = Field(gt=0)
    seed: int


class ExportingSettings(Section):
    """What an exported file must hold to; thresholds by quantisation."""

    quantization: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
    min_argmax_agreement: dict[str, float]
    max_mean_kl: dict[str, float]
    parity_tokens: PositiveInt
    parity_answers: int = Field(ge=0)


class ServingSettings(Section):
    """Where a model is deployed and how it samples."""

    target: Literal["llamacpp", "ollama"]
    ollama_host: str
    start_ollama: bool
    ollama_timeout: float = Field(gt=0)
    temperature: float = Field(ge=0)
    top_k: PositiveInt
    top_p: float = Field(gt=0, le=1)
    repeat_penalty: float = Field(gt=0)
    seed: int = Field(ge=0, lt=2**31)
    stop: list[str]
    num_ctx: PositiveInt
    num_predict: PositiveInt
    threads: int = Field(ge=0)
    unload_after: float = Field(gt=0)


class JobsSettings(Section):
    """How jobs share the machine. The worker takes them from its environment when it starts."""

    concurrent_trainings: int = Field(ge=1, le=8)
    concurrent_others: int = Field(ge=1, le=16)
    idle_seconds: float = Field(ge=0)
    keep_days: float = Field(gt=0)
    pause_below_battery: int = Field(ge=0, le=100)
    max_memory_share: float = Field(gt=0.0, le=1.0)
    silent_seconds: float = Field(ge=1)
    keep_awake: bool
    unload_ollama: bool


class Settings(BaseSettings):
    """All settings of one call, merged and checked."""

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="FORGE_", env_nested_delimiter="__", env_ignore_empty=True
    )

    project: ProjectSettings
    mining: MiningSettings
    raft: RaftSettings
    teacher: TeacherSettings
    quality: QualitySettings
    retrieval: RetrievalSettings
    training: TrainingSettings
    judging: JudgingSettings
    exporting: ExportingSettings
    serving: ServingSettings
    jobs: JobsSettings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` has merged counts, so that its order is the only one."""
        return (init_settings,)


def forge_home() -> Path:
    """The workspace's folder: FORGE_HOME, or ~/.forge."""
    return Path(os.environ.get("FORGE_HOME") or "~/.forge").expanduser().resolve()


@cache
def defaults() -> dict[str, Any]:
    """The parsed assets/defaults.yaml. Callers must not change it."""
    text = files("forge_mcp").joinpath("assets/defaults.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, section by section and key by key; lists are replaced, not joined."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def read_project_file(repository: Path) -> dict[str, Any]:
    """The repository's forge.toml, or {} where it has none.

    Raises:
        InvalidSettings: it is no TOML or cannot be read.
    """
    path = repository / PROJECT_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidSettings(
            f"The project file {path} cannot be read.",
            cause=str(error),
            next_step="Correct it, or move it away and run 'forge-mcp init' for a fresh one.",
        ) from error


def _check_environment() -> None:
    """Raises:
    InvalidSettings: a FORGE_SECTION__KEY whose section does not exist; it would be overlooked.
    """
    for name in sorted(os.environ):
        section, separator, _ = name.upper().removeprefix("FORGE_").partition("__")
        known = section.lower() in Settings.model_fields
        if name.upper().startswith("FORGE_") and separator and not known:
            raise InvalidSettings(
                f"The environment variable {name} sets nothing.",
                cause=f"there is no section '{section.lower()}'; known are "
                f"{', '.join(Settings.model_fields)}",
                next_step="Correct or unset it.",
            )


def load_settings(
    repository: Path | None = None, call: Mapping[str, Any] | None = None
) -> Settings:
    """Merge the four layers and check them.

    Args:
        repository: folder whose forge.toml counts; None for none.
        call: nested {section: {key: value}}, the highest layer.

    Raises:
        InvalidSettings: a key that does not exist or a value out of its bounds, named; or a
            foreign address that the repository, not the user, has set.
    """
    project = read_project_file(repository) if repository else {}
    _check_environment()
    try:
        of_user = merge(EnvSettingsSource(Settings)(), call or {})
        settings = Settings.model_validate(merge(merge(defaults(), project), of_user))
    except ValidationError as error:
        raise _invalid(error) from error
    except ValueError as error:  # an environment variable that is no JSON where JSON is needed
        raise InvalidSettings(
            "A FORGE_… environment variable cannot be read.",
            cause=str(error),
            next_step="Correct or unset it; nested values are JSON.",
        ) from error
    if "ollama_host" not in of_user.get("serving", {}):
        _require_loopback(settings.serving.ollama_host)
    _require_own_teacher(settings, of_user.get("teacher", {}))
    if "://" in settings.judging.humaneval and "humaneval" not in of_user.get("judging", {}):
        raise InvalidSettings(
            f"{PROJECT_FILE} may not set 'judging.humaneval' to an address.",
            cause=f"{settings.judging.humaneval!r} would be fetched, and no user asked for that",
            next_step="Take it out of the file; where you want it, set it in the environment "
            "(FORGE_JUDGING__HUMANEVAL) or the call.",
        )
    return settings


def differences(settings: Settings) -> dict[str, Any]:
    """{section: {key: value}} where settings are not the defaults; see `settings_from`."""
    found: dict[str, Any] = {}
    for section, values in settings.model_dump(mode="json").items():
        usual = defaults()[section]
        changed = {key: value for key, value in values.items() if value != usual[key]}
        if changed:
            found[section] = changed
    return found


def settings_from(differences: Mapping[str, Any]) -> Settings:
    """Settings again from their `differences`, perhaps ones that another version wrote down.

    A key that this version does not know has no effect in it and is left out.

    Raises:
        InvalidSettings: a value that this version does not accept; it is named.
    """
    known = {
        section: {key: value for key, value in values.items() if key in defaults()[section]}
        for section, values in differences.items()
        if section in defaults()
    }
    try:
        return Settings.model_validate(merge(defaults(), known))
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidSettings:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return InvalidSettings(
        f"The setting '{key}' is not valid.",
        cause=f"{first['msg']} (given: {first.get('input')!r})"[:300],
        next_step="Correct it in forge.toml, the environment (FORGE_SECTION__KEY) or the call; "
        "all settings stand in assets/defaults.yaml and docs/configuration.md.",
    )


def is_loopback(host: str) -> bool:
    """Whether an address (with or without scheme and port) is this machine's own."""
    try:
        name = urlsplit(host if "://" in host else f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name, or no address at all
        return False


def _require_loopback(host: str) -> None:
    """A repository that was cloned must not decide where a model is sent.

    Raises:
        InvalidSettings: `host`, which nobody but forge.toml has set, is not this machine.
    """
    if not is_loopback(host):
        raise InvalidSettings(
            f"{PROJECT_FILE} may not set 'serving.ollama_host' to another machine.",
            cause=f"{host!r} is not this machine, and a deployed model would be sent there",
            next_step="Take it out of the file; where the address is yours, set it in the "
            "environment (FORGE_SERVING__OLLAMA_HOST) or the call.",
        )


def is_cloud_model(model: str) -> bool:
    """Whether a local Ollama would hand this model's prompts on to its maker's servers."""
    return model.endswith((":cloud", "-cloud"))


def _require_own_teacher(settings: Settings, of_user: Mapping[str, Any]) -> None:
    """Nor where its code is sent, nor which of the user's secrets goes along as the key.

    Raises:
        InvalidSettings: a teacher on another machine, or the variable of its key, that nobody but
            forge.toml has set.
    """
    teacher, usual = settings.teacher, defaults()["teacher"]
    here = is_loopback(teacher.address.partition("#")[0])
    if teacher.address.startswith("ollama:"):
        here = not is_cloud_model(teacher.address)
    named = teacher.api_key_variable == usual["api_key_variable"]
    wrong = ""
    if "address" not in of_user and teacher.address and not here:
        wrong = "address"
    elif "api_key_variable" not in of_user and not named:
        wrong = "api_key_variable"
    if wrong:
        raise InvalidSettings(
            f"{PROJECT_FILE} may not set 'teacher.{wrong}' to this.",
            cause="it decides what leaves this machine: the repository's code, or a secret",
            next_step="Take it out of the file; where it is yours, set it in the environment "
            f"(FORGE_TEACHER__{wrong.upper()}) or the call.",
        )
