"""The parity gate: the exported file must be the model that was trained.

What users meet otherwise: other tokens than in training (pre-tokenizer, doubled BOS), a lost
chat template, answers that never stop, wrong weights. So four things are compared on held-out
rows: tokens and rendered chat must be equal, every end token must stop, and the next-token
distributions must agree within the thresholds of the quantisation. Answers that the file itself
generates are scored and reported; they have no threshold of their own, because `evaluate` has
judged the run and a file that passes here is that run.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import BadInput
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.machine import mlx
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.settings import ExportingSettings

PARITY_VERSION = 2
# Of each row only the last positions are compared: they hold the answer, and one row must not
# stand for all.
POSITIONS_PER_ROW = 128
MLX_CHUNK = 256  # tokens of a prompt that MLX takes at once

# Where tokenizers differ: contractions, numbers, runs of blanks, line ends, scripts, emoji,
# combining marks, control and zero-width characters.
TEXTS = (
    "def f(x):\n    return x  # it's 3.14159\n",
    "I'll can't WE'VE you'RE it's 12345678 ½ ²³ Ⅷ",
    "a  b   c\td\t\te\n\n\nf \n g\r\nh \r\n\r\n i   ",
    " \n \t\n",
    "naïve café Ünïcödé Straße Ελληνικά русский עברית العربية हिन्दी 中文字 日本語 한국어",
    "emoji 👩‍👩‍👧‍👦 🇩🇪 ❤️ zero\u200bwidth \u00a0nbsp \u3000wide e\u0301 combining",
    "__init__ camelCase snake_case CONST_1 x+=1;y--||z&&!w ?. => -> :: ... ## #! \\n $\"'`",
    "",
)


class Scored(Protocol):
    """An answer that was judged (judging.results.ScoredAnswer)."""

    @property
    def right(self) -> bool: ...  # noqa: D102
    @property
    def stopped(self) -> bool: ...  # noqa: D102


class ChatRuntime(Protocol):
    """The exported file in the runtime that will serve it (serving.llamacpp)."""

    def render(self, messages: Sequence[Message]) -> str: ...  # noqa: D102


@dataclass
class Parity:
    """What was measured, and what the gate says. Written as parity.json."""

    passed: bool
    reasons: list[str]
    quantization: str
    split: str
    rows: int
    tokens_compared: int
    argmax_agreement: float
    mean_kl: float
    min_argmax_agreement: float
    max_mean_kl: float
    texts_tokenized: int
    texts_tokenized_equal: int
    chats_rendered: int
    chats_rendered_equal: int
    answers: float | None = field(
        metadata={"help": "share of held-out questions that the file answers right; null: none"}
    )
    answers_asked: int
    answers_stopped: int

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class HeldOut:
    """Rows that the run was not trained on: whole chats that end in the assistant's turn."""

    split: str
    chats: list[list[Message]]


def check_parity(
    model: Any,
    tokenizer: Any,
    gguf_path: Path,
    runtime: ChatRuntime,
    held_out: HeldOut,
    settings: ExportingSettings,
    score: Callable[[Sequence[int]], Sequence[Scored]],
    *,
    quantization: str,
    context: int,
    threads: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Parity:
    """Compare a GGUF file with the model that it was made from.

    Args:
        model: the run's model in MLX, with adapters, ready to evaluate.
        tokenizer: the run's (mlx_lm's TokenizerWrapper).
        gguf_path: the file.
        runtime: the file in the chat runtime.
        held_out: rows to compare on; those longer than `context` are left out.
        settings: thresholds and sizes.
        score: lets the file in its runtime answer some of the rows (their places among
            `held_out.chats`), and judges the answers.
        quantization: of the file.
        context: tokens at most.
        threads: for llama.cpp; 0 for one a core.
        progress: told in a few words what is being done.

    Raises:
        BadInput: no held-out row fits.
        UnsupportedModel: llama.cpp does not load the file.
    """
    reasons: list[str] = []
    rendered = [_render(tokenizer, chat, prompt=False) for chat in held_out.chats]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in rendered]
    fitting = [index for index, ids in enumerate(encoded) if 1 < len(ids) <= context]
    if not fitting:
        raise BadInput(
            "The export cannot be checked: no held-out example fits the context.",
            cause=f"{len(encoded)} rows in the {held_out.split} split, a context of {context}",
            next_step="Raise serving.num_ctx, or make a dataset with a test split.",
        )

    with GgufModel(gguf_path, context=context, threads=threads) as file:
        progress("comparing tokens")
        texts = [*(rendered[index] for index in fitting), *TEXTS]
        equal_texts, first = _compare_tokens(file, tokenizer, texts)
        if equal_texts < len(texts):
            reasons.append(
                f"llama.cpp tokenises {len(texts) - equal_texts} texts otherwise: {first}"
            )
        endless = [token for token in sorted(tokenizer.eos_token_ids) if not file.ends(token)]
        if endless:
            names = tokenizer.convert_ids_to_tokens(endless)
            reasons.append(f"generation would not stop at {', '.join(map(str, names))}")
        progress("comparing logits")
        agreements, divergences = _compare_logits(
            model, file, (encoded[index] for index in fitting), settings.parity_tokens
        )

    agreement, mean_kl = float(np.mean(agreements)), float(np.mean(divergences))
    least, most = settings.min_argmax_agreement[quantization], settings.max_mean_kl[quantization]
    if agreement < least:
        reasons.append(f"the most likely token agrees in {agreement:.1%}, {least:.0%} is needed")
    if not mean_kl <= most:  # also catches NaN
        reasons.append(f"the mean KL divergence is {mean_kl:.4f}, at most {most:g} is allowed")

    progress("comparing rendered chats")
    prompts = [held_out.chats[index][:-1] for index in fitting]
    equal_chats = sum(
        runtime.render(chat) == _render(tokenizer, chat, prompt=True) for chat in prompts
    )
    if equal_chats < len(prompts):
        reasons.append(
            f"{len(prompts) - equal_chats} of {len(prompts)} chats are rendered otherwise"
        )

    progress("generating answers")
    answers = score(fitting[: settings.parity_answers])
    return Parity(
        passed=not reasons,
        reasons=reasons,
        quantization=quantization,
        split=held_out.split,
        rows=len(fitting),
        tokens_compared=len(agreements),
        argmax_agreement=agreement,
        mean_kl=mean_kl,
        min_argmax_agreement=least,
        max_mean_kl=most,
        texts_tokenized=len(texts),
        texts_tokenized_equal=equal_texts,
        chats_rendered=len(prompts),
        chats_rendered_equal=equal_chats,
        answers=sum(one.right for one in answers) / len(answers) if answers else None,
        answers_asked=len(answers),
        answers_stopped=sum(one.stopped for one in answers),
    )


def _render(tokenizer: Any, chat: Sequence[Message], *, prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        [message.model_dump() for message in chat], tokenize=False, add_generation_prompt=prompt
    )
    return text


def _compare_tokens(file: GgufModel, tokenizer: Any, texts: Sequence[str]) -> tuple[int, str]:
    """How many texts give equal ids, and the first that does not.

    llama.cpp has no NFC step, so text is compared in the form that a normalising tokenizer makes.
    """
    normalises = _normalises(tokenizer)
    equal, first = 0, ""
    for text in texts:
        text = unicodedata.normalize("NFC", text) if normalises else text
        bare = tokenizer.encode(text, add_special_tokens=False) == file.tokenize(text)
        full = tokenizer.encode(text) == file.tokenize(text, add_special=True)
        equal += bare and full
        if not (bare and full) and not first:
            first = repr(text[:60])
    return equal, first


def _normalises(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and backend.normalizer is not None


def _compare_logits(
    model: Any, file: GgufModel, rows: Iterable[Sequence[int]], budget: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Per position: whether the most likely next tokens are equal, and KL(run || file) in nats."""
    agreements: list[NDArray[np.bool_]] = []
    divergences: list[NDArray[np.float64]] = []
    left = budget
    for ids in rows:
        if left <= 0:
            break
        last = min(len(ids), POSITIONS_PER_ROW, left)
        left -= last
        truth = _log_softmax(tail_logits(model, ids, last))
        found = _log_softmax(file.logits(ids, last))
        agreements.append(truth.argmax(-1) == found.argmax(-1))
        divergences.append((np.exp(truth) * (truth - found)).sum(-1))
    return np.concatenate(agreements), np.concatenate(divergences)


def tail_logits(model: Any, ids: Sequence[int], last: int) -> NDArray[np.float32]:
    """Next-token logits of an mlx-lm model after each of the `last` last tokens: (last, vocab).

    What stands before goes through the cache, so its logits are never held.
    """
    mx = mlx()
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    head = len(ids) - last
    for start in range(0, head, MLX_CHUNK):
        model(mx.array([ids[start : min(start + MLX_CHUNK, head)]]), cache=cache)
        mx.eval([layer.state for layer in cache])
    logits = model(mx.array([ids[head:]]), cache=cache)
    return np.array(logits[0].astype(mx.float32))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised
