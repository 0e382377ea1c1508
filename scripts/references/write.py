"""Reference outputs of other people's implementations, small enough to keep beside the tests.

    make references        # or: python scripts/references/write.py tests/fixtures/references

Writes, with the versions that made them in versions.json:

    pissa.npz     PEFT's PiSSA of one random matrix: weight, A, B, residual (rank 8, alpha 16)
    adapters.npz  PEFT's PiSSA of more shapes; forward pass and gradients of its LoRA, rsLoRA and
                  DoRA: see peft_adapters.py
    exports.npz   what transformers and PEFT compute with folders that our exporters wrote: see
                  peft_export.py
    llama/        a tiny random Llama (grouped-query attention, tied embeddings) in Hugging Face
                  format, and reference.npz: token ids, logits of transformers in float32, labels
                  with the prompt masked (-100), and the loss that transformers computes from them
    bert/, roberta/
                  a tiny random encoder each, and reference.npz: padded token ids, their mask, and
                  the last hidden states of transformers in float32
    nf4.npz       bitsandbytes' NF4, 8-bit blocks and 8-bit AdamW: see bitsandbytes_nf4.py
    perplexity.json
                  perplexity of forge-nano by transformers, in strided windows: see
                  strided_perplexity.py
    codebleu.json.gz
                  codebleu's scores of more than 2,000 pairs of functions: see codebleu_pairs.py

Three files come from an environment of their own (requirements-converter.txt) and say their
versions themselves: gguf.json.gz, gguf_quantized.json.gz and tokenizers.json.gz, by the scripts
gguf_conversion.py, gguf_quantization.py and tokenizers_in_gguf.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig
from peft.tuners.lora import Linear
from peft_adapters import write_adapters
from peft_export import write_exports
from strided_perplexity import write_perplexity
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

SEED = 17


def write_pissa(folder: Path) -> None:
    """PEFT's factors and residual of a random 64 x 96 matrix."""
    torch.manual_seed(SEED)
    layer = torch.nn.Linear(96, 64, bias=False)
    weight = layer.weight.detach().clone()
    config = LoraConfig(r=8, lora_alpha=16, init_lora_weights="pissa")
    adapted = Linear(
        layer,
        adapter_name="default",
        r=8,
        lora_alpha=16,
        config=config,
        init_lora_weights="pissa",
    )
    np.savez_compressed(
        folder / "pissa.npz",
        weight=weight.numpy(),
        a=adapted.lora_A["default"].weight.detach().numpy(),
        b=adapted.lora_B["default"].weight.detach().numpy(),
        residual=adapted.base_layer.weight.detach().numpy(),
    )


def write_llama(folder: Path) -> None:
    """A tiny Llama, its logits, and its loss over labels whose first half is masked."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 128, (1, 48))
    labels = ids.clone()
    labels[:, :24] = -100
    with torch.no_grad():
        out = model(ids, labels=labels)
    model.save_pretrained(folder / "llama")
    np.savez_compressed(
        folder / "llama" / "reference.npz",
        ids=ids[0].numpy(),
        labels=labels[0].numpy(),
        logits=out.logits[0].numpy(),
        loss=np.float64(out.loss.item()),
    )


def write_encoders(folder: Path) -> None:
    """A tiny BERT and RoBERTa and their last hidden states for four padded texts."""
    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "initializer_range": 0.3,
    }
    encoders = {
        "bert": (BertModel, BertConfig(**sizes, pad_token_id=0)),
        "roberta": (RobertaModel, RobertaConfig(**sizes, pad_token_id=1, type_vocab_size=1)),
    }
    for name, (kind, config) in encoders.items():
        torch.manual_seed(SEED)
        model = kind(config, add_pooling_layer=False).eval()
        lengths = torch.tensor([30, 1, 12, 17])
        mask = torch.arange(30)[None, :] < lengths[:, None]
        ids = torch.where(mask, torch.randint(2, 96, mask.shape), config.pad_token_id)
        with torch.no_grad():
            hidden = model(ids, attention_mask=mask.long()).last_hidden_state
        model.save_pretrained(folder / name)
        np.savez_compressed(
            folder / name / "reference.npz",
            ids=ids.numpy(),
            mask=mask.numpy(),
            hidden=hidden.numpy(),
        )


def main(target: str) -> None:
    """Write every reference into `target`."""
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    write_pissa(folder)
    write_adapters(folder)
    write_exports(folder)
    write_llama(folder)
    write_encoders(folder)
    write_perplexity(folder)
    for name in ("bitsandbytes_nf4.py", "codebleu_pairs.py"):
        subprocess.run([sys.executable, Path(__file__).with_name(name), folder], check=True)
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bitsandbytes": version("bitsandbytes"),
        "numpy": np.__version__,
        "codebleu": version("codebleu"),
        "tree-sitter": version("tree-sitter"),
    }
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
