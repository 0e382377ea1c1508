"""README.md of what is given away: what it was made from, and what may be done with it.

The front matter is that of the Hugging Face Hub's model cards. Paths of this machine stay out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from forge_mcp.training.bases import entry_of
from forge_mcp.training.merging import MergedRun

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
VALUE = r":[ \t]*(?:\n[ \t]*-[ \t]*)?['\"]?([\w./+-]+)"  # of the front matter; of a list, the first
# Licences that the Hub has an identifier for; others are "other" with a name.
HUB_LICENSES = ("apache-2.0", "mit", "llama3.2", "gemma")


class BaseNames(NamedTuple):
    """trained: the name the run was trained under; original: the float weights it stands for, as
    the Hub calls them, where that is known; license: where that is known."""

    trained: str
    original: str | None
    license: str | None


class AdapterError(NamedTuple):
    """Relative Frobenius error of base + adapter against the run's merged weights, over the
    adapted layers."""

    mean: float
    largest: float
    where: str


def base_names(run: MergedRun) -> BaseNames:
    """What the base of a run is called elsewhere, and under which licence it is.

    From assets/models.yaml, else from the base's own card.
    """
    name = run.base.name
    if found := entry_of(name):
        return BaseNames(name, found[1].original, found[1].license)
    original = name if HUB_ID.fullmatch(name) else None
    if run.base_is_quantised:
        original = _told(run, "base_model") or original
    return BaseNames(name, original, _told(run, "license"))


def fused_card(run: MergedRun, dtype: str) -> str:
    """The card of a merged model."""
    return _card(
        run,
        library="transformers",
        title=f"{run.artifact.manifest.project}, merged",
        text=f"The base model with what was trained on one repository merged into its weights "
        f"({dtype}): no adapter is needed. mlx-lm and transformers load this folder.",
    )


def peft_card(run: MergedRun, error: AdapterError) -> str:
    """The card of adapters in PEFT's format."""
    parts = [
        "Adapters for the untouched base model, in PEFT's format "
        "(`PeftModel.from_pretrained(base, folder)`).",
        _how(run),
        f"Measured when this was written: the weights of base + adapter differ from those of the "
        f"run by {error.mean:.3g} (mean over the adapted layers, relative Frobenius norm), at most "
        f"{error.largest:.3g} ({error.where}).",
    ]
    if run.base_is_quantised:
        parts.append(
            "The base that the run was trained on is itself quantised, and the figures compare "
            "with its dequantised weights. Over the float weights that it was made from, its own "
            "quantisation error comes on top; that was not measured."
        )
    return _card(
        run,
        library="peft",
        title=f"{run.artifact.manifest.project}, adapters",
        text="\n\n".join(parts),
    )


def _how(run: MergedRun) -> str:
    if run.method == "pissa":
        return (
            "The run was trained with PiSSA, whose adapters replace a part of the weights. Here "
            "their change since training began stands as a plain LoRA of twice the rank: "
            "s (B A - B0 A0). While it was trained, the rest of the weights was quantised; that "
            "quantisation error is not in these adapters, so that results differ from the run's "
            "by it."
        )
    if run.method == "dora":
        return (
            "The run was trained with DoRA over quantised weights. A row's magnitude is relative "
            "to the weights below it, so that the adapters are exact only over the very weights "
            "they were trained on."
        )
    return (
        "The run was trained over quantised weights. Their quantisation error is not in these "
        "adapters, so that results differ from the run's by it."
    )


def _card(run: MergedRun, *, library: str, title: str, text: str) -> str:
    manifest, base = run.artifact.manifest, base_names(run)
    front = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    if base.original:
        front.append(f"base_model: {base.original}")
    if base.license and base.license.lower() in HUB_LICENSES:
        front.append(f"license: {base.license.lower()}")
    elif base.license:
        front += ["license: other", f"license_name: {base.license}"]
    datasets = [parent for parent in manifest.parents if parent.startswith("ds-")]
    rows = [
        ("project", manifest.project),
        ("run", f"{manifest.id} ({manifest.created})"),
        ("base", _base_words(base)),
        ("base weights (SHA-256)", run.base.weights_sha256),
        ("method", f"{run.method}, rank {run.rank}, alpha {run.alpha:g}"),
        ("dataset", ", ".join(datasets)),
        ("repository revision", _revision(run)),
        ("licence of the base", base.license or "not known here: see the base's own page"),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows if value)
    return (
        "\n".join([*front, "---", ""])
        + f"\n# {title}\n\n{text}\n\n| made from | |\n|---|---|\n{table}\n\n"
        "What the base's licence asks of a derived model holds for this one too. The training data "
        "came from the repository; its own licence decides whether this may be given away.\n"
    )


def _base_words(base: BaseNames) -> str:
    if base.original and base.original != base.trained:
        return f"{base.trained} (of {base.original})"
    return base.trained


def _revision(run: MergedRun) -> str:
    state = run.artifact.manifest.repository
    if state is None or state.revision is None:
        return ""
    return state.revision + (", with uncommitted changes" if state.dirty else "")


def _told(run: MergedRun, key: str) -> str | None:
    """A value of the front matter of the base's own card, where there is one."""
    readme = run.base_path / "README.md"
    if not readme.is_file():
        return None
    text = readme.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or (end := text.find("\n---", 4)) < 0:
        return None
    found = re.search(f"^{key}{VALUE}", text[:end], re.MULTILINE)
    return found.group(1) if found else None
