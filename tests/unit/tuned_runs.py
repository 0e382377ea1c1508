"""Tiny runs on tiny bases, without training: adapters attached, then moved at random.

    python tests/unit/tuned_runs.py FOLDER

writes what scripts/references/peft_export.py opens with transformers and PEFT: for each of
REFERENCE_CASES the folders base, fused and peft.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import training_models
from numpy.typing import NDArray
from tiny_models import MORE

from forge_mcp import machine
from forge_mcp.schemas.manifests import RepositoryState
from forge_mcp.training.adapters import adapter_weights, attach_adapters, set_adapter_weights
from forge_mcp.training.bases import load_base
from forge_mcp.training.merging import MergedRun, open_merged
from forge_mcp.training.run import ADAPTERS, CONFIG, describe_run, save_frozen
from forge_mcp.workspace import Artifact, Workspace

mx = machine.mlx()

KINDS = [*training_models.CONFIGS, "ministral3"]
MOVED = 0.05  # how far adapters are moved from their start: about the size of the weights
TOKENS = [(7 * number * number + 3) % 250 for number in range(48)]  # beyond the sliding windows

# What transformers asks of a config.json, and mlx-lm does not: a seeing part that can be built, and
# a padding token within the vocabulary.
ALSO: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "image_size": 28,
            "patch_size": 14,
        }
    },
    "phi3": {"pad_token_id": 0},
    "phi4": {"pad_token_id": 0},
}

VERSION_5 = " of transformers 5"  # cases whose config.json is as that writes it
# What transformers and PEFT have opened: kind, tied, settings. Rank 40 is more than K and V have.
REFERENCE_CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "llama": ("llama", True, {"init_method": "pissa", "rank": 40, "lora_alpha": 20.0}),
    "llama3": ("llama3", False, {"init_method": "lora", "target_modules": ["q_proj", "lm_head"]}),
    "mistral": ("mistral", False, {"init_method": "dora"}),
    "qwen2": ("qwen2", False, {"init_method": "rslora", "rank": 40, "lora_alpha": 20.0}),
    "qwen3": ("qwen3", True, {"init_method": "lora", "rank": 40, "lora_alpha": 20.0}),
    "gemma": ("gemma", True, {"init_method": "dora"}),
    "gemma2": ("gemma2", True, {"init_method": "pissa"}),
    "gemma3_text": ("gemma3_text", True, {"init_method": "rslora"}),
    "gemma3": ("gemma3", True, {"init_method": "pissa"}),
    "phi3": ("phi3", False, {"init_method": "pissa"}),
    "phi4": ("phi4", True, {"init_method": "lora"}),
    **{f"{kind}{VERSION_5}": (kind, False, {"init_method": "lora"}) for kind in ("llama3", "phi3")},
    **{f"{kind}{VERSION_5}": (kind, True, {"init_method": "lora"}) for kind in ("phi4", "gemma3")},
    **{f"{kind}{VERSION_5}": (kind, True, {"init_method": "lora"}) for kind in ("gemma3_text",)},
}


def make_base(folder: Path, kind: str = "llama", *, tied: bool = True) -> Path:
    """A tiny random base of one of KINDS, as training_models makes it."""
    with patch.dict(training_models.CONFIGS, ministral3=MORE["ministral3"]):
        return training_models.make_base(folder, kind, tied=tied)


def make_run(
    home: Path,
    base: Path,
    *,
    steady: bool = False,
    repository: RepositoryState | None = None,
    **settings: Any,
) -> Artifact:
    """A run on `base` with the settings of training_models.settings.

    Args:
        home: of the workspace.
        base: a folder.
        steady: move the adapters so that the merged weights are the same on every machine: the
            sign of a singular vector, and so of PiSSA's start, is free.
        repository: of the manifest.
    """
    chosen = training_models.settings(**settings)
    loaded = load_base(str(base), lazy=True)
    adapters = attach_adapters(loaded.model, chosen, loaded.dtype)
    workspace = Workspace(home)
    with workspace.stage("run", "demo") as staged:
        config = describe_run(loaded, chosen, adapters.frozen, "Answer.")
        save_frozen(staged.path, adapters.frozen, adapters.initial)
        random = np.random.default_rng(11)
        moved = {}
        for name, array in adapter_weights(loaded.model).items():
            if steady and chosen.init_method == "pissa":
                moved[name] = array * (0.8 if name.endswith("lora_a") else 1.5)
            else:
                moved[name] = array + MOVED * mx.array(random.standard_normal(array.shape))
        set_adapter_weights(loaded.model, moved)
        mx.save_safetensors(str(staged.path / ADAPTERS), adapter_weights(loaded.model))
        (staged.path / CONFIG).write_text(json.dumps(config))
        digest = f"{len(workspace.artifacts('run')):064x}"
        return staged.commit(
            id=workspace.new_id("run", "demo", digest),
            inputs_hash=digest,
            parents=["ds-demo-1"],
            repository=repository,
        )


def quantise_base(base: Path, target: Path, **how: Any) -> Path:
    """The MLX-quantised counterpart of a base, as mlx_lm.convert makes it."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(base)
    how = {"group_size": 32, "bits": 4} | how
    model, config = quantize_model(model, config, **how)
    target.mkdir(parents=True)
    save_model(target, model)
    save_config(config, target / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, target / name)
    return target


def logits(model: Any, tokens: list[int] = TOKENS) -> NDArray[np.float32]:
    """(tokens, vocabulary)."""
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def plain_model(folder: Path) -> Any:
    """A folder as mlx-lm itself loads it, but for Phi's rotary embedding."""
    from mlx_lm.utils import load_model

    from forge_mcp.training.compatibility import use_long_rope

    model, _ = load_model(folder)
    use_long_rope(model)
    return model


def reference_case(folder: Path, case: str) -> MergedRun:
    """Write base, fused and peft of one of REFERENCE_CASES into `folder`."""
    from transformers import AutoConfig

    from forge_mcp.exporting.fuse import merge_adapters_to_base
    from forge_mcp.exporting.peft import export_peft

    kind, tied, settings = REFERENCE_CASES[case]
    base = make_base(folder / "base", kind, tied=tied)
    config = json.loads((base / "config.json").read_text()) | ALSO.get(kind, {})
    if case.endswith(VERSION_5):
        config = AutoConfig.for_model(**config).to_dict()
    (base / "config.json").write_text(json.dumps(config))
    run = open_merged(make_run(folder / "home", base, steady=True, **settings))
    merge_adapters_to_base(run, folder / "fused", "float32")
    export_peft(run, folder / "peft")
    return run


def layout(folder: Path) -> str:
    """SHA-256 over what decides whether and how a folder is read: its configuration, and names,
    types and shapes of its tensors. Only the values of the tensors are left out."""
    from forge_mcp.training.base_files import safetensors_header

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*config.json")):
        if path.name != "tokenizer_config.json":
            digest.update(path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(json.dumps(safetensors_header(path), sort_keys=True).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for case in REFERENCE_CASES:
        reference_case(target / case, case)
    layouts = {
        case: [layout(target / case / name) for name in ("fused", "peft")]
        for case in REFERENCE_CASES
    }
    (target / "layouts.json").write_text(json.dumps({"tokens": TOKENS, "layouts": layouts}))
