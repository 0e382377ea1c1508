"""The forge-nano tokenizer: byte-level BPE of 4,096 entries, cut like Qwen2's.

The pre-tokenizer is exactly Qwen2's split expression and a ByteLevel step, so that llama.cpp
reads the exported GGUF with ``tokenizer.ggml.pre = "qwen2"``. Every byte has an entry: there is
no unknown token, and text survives a round trip exactly. ``train.py`` calls ``train()``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from data import Document
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

VOCAB_SIZE = 4096
DOCUMENT_END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (DOCUMENT_END, TURN_START, TURN_END)
DOCUMENT_END_ID, TURN_START_ID, TURN_END_ID = range(3)

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

# Phrases of the project's prompts and answers: training the merges on a little of this text
# makes each of their words one token.
PHRASES = (
    "system\nYou answer questions about a code base from the given documents only.\n",
    "user\nassistant\n",
    "<DOCUMENT> src/{a}/{b}.py:{n}-{m} {c}.{d}\n</DOCUMENT>\n",
    "<DOCUMENT> {a}/{b}.go:{n}-{m} {d}\n</DOCUMENT>\n",
    "<DOCUMENT> lib/{a}/{b}.js:{n}-{m} {d}\n</DOCUMENT>\n",
    "##begin_quote##{d}({a}, {b}=None)##end_quote##\n",
    "<ANSWER>: {d}\n",
    "Question: Where is `{d}` defined?\n`{d}` is defined in `{a}/{b}.py`, lines {n} to {m}.\n",
    "The signature of `{d}` is `{d}({a}, {b})`.\n",
    "Question: What is the signature of `{d}`?\n",
    "Question: What exceptions does `{d}` raise?\n`{d}` raises `ValueError` and `TypeError`.\n",
    "Question: What is the default of parameter `{a}` of `{d}`?\n"
    "The default of parameter `{a}` of `{d}` is `None`.\n",
    "Question: Which functions does `{d}` call?\n`{d}` calls `{a}` and `{b}`.\n",
    "Question: Which functions call `{d}`?\n`{d}` is called by `{a}`.\n",
    "Question: What does `{d}` do?\nThe docstring of `{d}` says: \n",
    "Question: What does `{d}` return?\n`{d}` returns `{a}`.\n",
    "Question: What parameters does `{d}` take?\n",
    "Question: Which class does `{c}` inherit from?\nThe base class of `{c}` is `{a}`.\n",
    "Question: Which methods does class `{c}` have?\nThe methods of `{c}` are `{a}` and `{b}`.\n",
    "Question: Which module imports `{a}`?\n",
    "The given documents do not say.\n",
)


def phrases(count: int, names: list[str], rng: random.Random) -> Iterator[str]:
    """Yield `count` prompt and answer phrases filled with names found in the corpus."""
    for _ in range(count):
        a, b, c, d = rng.choices(names, k=4)
        n = rng.randrange(1, 900)
        text = rng.choice(PHRASES)
        if rng.random() < 0.5:
            text = text.replace("Question: ", "")
        yield text.format(a=a.lower(), b=b.lower(), c=c.title(), d=d, n=n, m=n + rng.randrange(60))


def train(documents: list[Document], seed: int, code_bytes: int = 16_000_000) -> Tokenizer:
    """Train the tokenizer on a slice of the corpus and a small slice of phrases."""
    rng = random.Random(seed)
    total, texts = 0, []
    for document in documents:
        if (total := total + len(document.text)) > code_bytes:
            break
        texts.append(document.text)
    names = sorted(set(re.findall(r"def ([a-z]\w{3,20})\(", "".join(texts[:400]))))
    texts += phrases(12_000, names, rng)

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries")
    return tokenizer


def byte_lengths(tokenizer: Tokenizer) -> list[int]:
    """How many bytes of text each entry stands for (special tokens: 0)."""
    lengths = [0] * VOCAB_SIZE
    for token, index in tokenizer.get_vocab().items():
        if index >= len(SPECIAL_TOKENS):
            lengths[index] = len(token)  # one character of the ByteLevel alphabet is one byte
    return lengths
