"""Write forge-nano's assets from a training checkpoint, in Hugging Face's layout.

    python scripts/nano/export.py --work-dir /tmp/nano --out forge_mcp/assets/forge-nano

Takes the chat checkpoint if there is one, else the code checkpoint (or --phase). Weights are
stored in float16; the bits per byte in ``recipe.json`` are those of the stored weights. The
folder is written beside its place and renamed there, so a reader never sees half of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import data
import tokenizer as tok
import torch
from model import Config, Nano
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from train import bits_per_byte

LICENSE = """forge-nano

The weights and the tokenizer in this folder were made by scripts/nano of AI Forge from random
initialisation. No weights of another model went into them. They are licensed under the Apache
License, Version 2.0, like the rest of AI Forge.

They were trained on the source code of the works below, each under a permissive licence, and,
in the second phase, on questions and answers that this project's own pipeline derived from such
code. None of this text is distributed here. `recipe.json` gives versions and byte counts.

"""


def dump(path: Path, value: object) -> None:
    """Write JSON the way Hugging Face's files look."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_config(out: Path, config: Config) -> None:
    """Write ``config.json`` and ``generation_config.json``."""
    ids = {
        "bos_token_id": None,
        "eos_token_id": tok.TURN_END_ID,
        "pad_token_id": tok.DOCUMENT_END_ID,
    }
    dump(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            **ids,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "hidden_size": config.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "num_key_value_heads": config.num_attention_heads,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_scaling": None,
            "rope_theta": config.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": config.vocab_size,
        },
    )
    dump(out / "generation_config.json", {"do_sample": False, **ids})


def write_tokenizer(out: Path, work: Path, config: Config) -> None:
    """Write the tokenizer's files and the chat template."""
    shutil.copyfile(work / "tokenizer.json", out / "tokenizer.json")
    special = {"eos_token": tok.TURN_END, "pad_token": tok.DOCUMENT_END}
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    dump(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": token, **flags} for i, token in enumerate(tok.SPECIAL_TOKENS)
            },
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            **special,
            "model_max_length": config.max_position_embeddings,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    )
    dump(out / "special_tokens_map.json", special)
    (out / "chat_template.jinja").write_text(tok.CHAT_TEMPLATE, encoding="utf-8")


def write_license(out: Path, corpus: dict[str, Any]) -> None:
    """Write the licence and the list of works trained on."""
    lines = [f"{s['name']} {s['version']}: {s['license']}" for s in corpus["sources"]]
    (out / "LICENSE").write_text(LICENSE + "\n".join(lines) + "\n", encoding="utf-8")


def write_recipe(
    out: Path, work: Path, corpus: dict[str, Any], phase: str, limit: int | None
) -> None:
    """Write ``recipe.json``: what was done, with what, and how good the result is."""
    phases = {}
    for name in ("code", "chat")[: 1 + (phase == "chat")]:
        saved = torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)
        hidden = ("work_dir", "chats", "threads", "save_minutes", "log_seconds", "eval_tokens")
        settings = {k: v for k, v in saved["args"].items() if k not in hidden}
        state = saved["state"]
        settings["tokens"] = state["tokens"]
        phases[name] = {
            "tokens_seen": state["tokens"],
            "steps": state["step"],
            "minutes": round(state["seconds"] / 60, 1),
            "settings": settings,
        }
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = Nano(Config())
    stored = {k: v.float() for k, v in load_file(out / "model.safetensors").items()}
    model.load_state_dict(stored)
    bpb = bits_per_byte(
        model, work / "held_out.bin", tok.byte_lengths(tokenizer), torch.device("cpu"), limit
    )
    packages = ("torch", "tokenizers", "safetensors", "numpy")
    dump(
        out / "recipe.json",
        {
            "model": "forge-nano",
            "parameters": sum(t.numel() for t in stored.values()),
            "phases": phases,
            "tokens_seen": sum(int(p["tokens_seen"]) for p in phases.values()),
            "held_out": {
                **corpus["held_out"],
                "modules": corpus["held_out_modules"],
                "bits_per_byte": round(bpb, 4),
                "windows": "all" if limit is None else f"about {limit} tokens of them",
            },
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in packages},
            },
            "seed": corpus["seed"],
            "train": corpus["train"],
            "never_read": sorted(data.NEVER),
            "sources": corpus["sources"],
        },
    )


def export(work: Path, out: Path, phase: str | None, limit: int | None) -> None:
    """Write the whole folder to a staging place, then swap it in."""
    phase = phase or ("chat" if (work / "chat.pt").exists() else "code")
    corpus: dict[str, Any] = json.loads((work / "data.json").read_text(encoding="utf-8"))
    saved = torch.load(work / f"{phase}.pt", map_location="cpu", weights_only=True)
    weights = {name: tensor.half().contiguous() for name, tensor in saved["model"].items()}
    if not all(bool(torch.isfinite(t).all()) for t in weights.values()):
        raise ValueError("a weight does not fit into float16")
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    staged.chmod(0o755)
    save_file(weights, staged / "model.safetensors", metadata={"format": "pt"})
    write_config(staged, Config())
    write_tokenizer(staged, work, Config())
    write_license(staged, corpus)
    write_recipe(staged, work, corpus, phase, limit)
    for file in staged.iterdir():
        file.chmod(0o644)
    previous = staged.with_name(staged.name + ".previous")
    if out.exists():
        out.rename(previous)
    staged.rename(out)
    shutil.rmtree(previous, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("forge_mcp/assets/forge-nano"))
    parser.add_argument("--phase", choices=("code", "chat"), help="default: the latest there is")
    parser.add_argument("--eval-tokens", type=int, help="measure on a part of the held-out text")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    export(options.work_dir, options.out, options.phase, options.eval_tokens)
