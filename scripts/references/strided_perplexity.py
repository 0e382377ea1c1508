"""Perplexity of forge-nano by transformers, in strided windows; write.py calls `write_perplexity`.

perplexity.json  weights: SHA-256 of forge-nano's model.safetensors; texts; and for each case: the
                 text's number, tokens, max_length, stride, start (labels before it are -100), the
                 mean loss and the number of counted tokens of each window in which something is
                 scored, the average NLL and the perplexity

A window's mean loss is what the model returns for its labels, and the windows are weighted as in
transformers' documentation, "Perplexity of fixed-length models": by their labels less one.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROJECT = Path(__file__).parents[2]
NANO = PROJECT / "forge_mcp" / "assets" / "forge-nano"
LANGUAGES = PROJECT / "tests" / "fixtures" / "languages"
TEXTS = ("Badge.tsx", "shelf.rs", "queue.js")
# text, max_length, stride, start
CASES = (
    (0, 512, 256, 1),
    (0, 512, 256, 60),
    (1, 1024, 512, 1),
    (1, 512, 256, 1),
    (1, 256, 101, 1),
    (1, 512, 256, 700),
    (2, 300, 77, 1),
    (2, 300, 299, 1),
    (2, 300, 150, 299),
)


def strided(model: Any, ids: torch.Tensor, max_length: int, stride: int, start: int) -> Any:
    """The mean losses of the windows of a text (1, tokens), and how many tokens each counts for."""
    losses, counts = [], []
    done, length = 0, ids.shape[1]
    for begin in range(0, length, stride):
        end = min(begin + max_length, length)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - done)] = -100
        if start > 1:
            labels[:, : max(0, start - begin)] = -100
        counted = int((labels != -100).sum()) - 1
        if counted >= 0:
            with torch.no_grad():
                losses.append(model(ids[:, begin:end], labels=labels).loss.item())
            counts.append(counted)
        done = end
        if end == length:
            break
    return losses, counts


def write_perplexity(folder: Path) -> None:
    """Every case, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    texts = [(LANGUAGES / name).read_text("utf-8") for name in TEXTS]
    cases = []
    for text, max_length, stride, start in CASES:
        ids = tokenizer(texts[text], return_tensors="pt").input_ids
        losses, counts = strided(model, ids, max_length, stride, start)
        average = sum(n * loss for loss, n in zip(losses, counts, strict=True)) / sum(counts)
        cases.append(
            {
                "text": text,
                "tokens": ids.shape[1],
                "max_length": max_length,
                "stride": stride,
                "start": start,
                "losses": losses,
                "counts": counts,
                "nll": average,
                "perplexity": math.exp(average),
            }
        )
    weights = hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()
    found = {"weights": weights, "texts": texts, "cases": cases}
    (folder / "perplexity.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
