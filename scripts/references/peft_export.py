"""What transformers and PEFT make of our exports; write.py calls `write_exports`.

The folders are written by our own exporters, in the project's environment (tests/unit/
tuned_runs.py makes tiny bases and runs from seeds; `make install` first), and opened here as a user
would: `AutoModelForCausalLM.from_pretrained` and `PeftModel.from_pretrained`.

exports.npz   by case, as "case.array":
              fused: logits of the merged folder, (1, vocabulary), at the last token
              peft: logits of the untouched base with the exported adapter, the same token
              layout: SHA-256 of the configurations, names, types and shapes that were opened
                  (bytes), merged folder first, so that a test knows that it writes the same
              pissa.*: PEFT's own conversion of a PiSSA adapter to LoRA: a0, b0 as training begins,
              a, b as it ends, scaling, and change (out, in), what the converted adapter adds
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
SEED = 41
LAYER = "model.layers.0.self_attn.q_proj"


def write_exports(folder: Path) -> None:
    """All cases into one file."""
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as work:
        exports = Path(work)
        python = ROOT / ".venv" / "bin" / "python"
        subprocess.run([python, ROOT / "tests" / "unit" / "tuned_runs.py", exports], check=True)
        told = json.loads((exports / "layouts.json").read_text())
        tokens = torch.tensor([told["tokens"]])
        for case, layouts in told["layouts"].items():
            here = exports / case
            arrays[f"{case}.fused"] = _logits(_model(here / "fused"), tokens)
            adapted = PeftModel.from_pretrained(_model(here / "base"), here / "peft")
            arrays[f"{case}.peft"] = _logits(adapted, tokens)
            arrays[f"{case}.layout"] = np.frombuffer(
                b"".join(bytes.fromhex(one) for one in layouts), np.uint8
            )
        arrays |= {f"pissa.{key}": value for key, value in _converted(exports / "own").items()}
    np.savez_compressed(folder / "exports.npz", **arrays)


def _model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def _logits(model: torch.nn.Module, tokens: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(tokens).logits[0, -1:].numpy()


def _converted(folder: Path) -> dict[str, np.ndarray]:
    """A small model with PEFT's PiSSA, moved, and saved by PEFT as a LoRA for the whole base."""
    torch.manual_seed(SEED)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights="pissa")
    model = get_peft_model(base, config)
    # The start is saved as weights to be loaded, not to be decomposed again.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    a0, b0 = (weight.detach().clone() for weight in weights)
    with torch.no_grad():
        for weight in weights:
            weight += 0.1 * torch.randn_like(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(
            folder / "lora", path_initial_model_for_weight_conversion=str(folder / "start")
        )
    saved = load_file(folder / "lora" / "adapter_model.safetensors")
    told = json.loads((folder / "lora" / "adapter_config.json").read_text())
    a, b = (saved[f"base_model.model.{LAYER}.{key}.weight"] for key in ("lora_A", "lora_B"))
    return {
        "a0": a0.numpy(),
        "b0": b0.numpy(),
        "a": weights[0].detach().numpy(),
        "b": weights[1].detach().numpy(),
        "scaling": np.float32(layer.scaling["default"]),
        "change": np.float32(told["lora_alpha"] / told["r"]) * b @ a,
    }
