"""The parity gate: the exported file must be the model that was trained.

What users meet otherwise: other tokens than in training (pre-tokenizer, doubled BOS), a lost
chat template, answers that never stop, wrong weights. So the file is held against the run on
held-out rows (`reference`): tokens and rendered chats must be equal, every end token must stop,
the next-token distributions must agree within the thresholds of the quantisation, and where the
run's own answers come to an end, the file's must too. Those answers are scored and reported beside
the run's own; they have no threshold, because `evaluate` has judged the run and a file that passes
here is that run.

How the thresholds were chosen: docs/export.md, "The parity gate".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.reference import Prompt, Reference, Scored, Tokenised
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.settings import ExportingSettings

PARITY_VERSION = 3


class ChatRuntime(Protocol):
    """The exported file in the runtime that will serve it (serving.llamacpp)."""

    def render(self, messages: Sequence[Message]) -> str: ...  # noqa: D102
    def tokenize(self, text: str) -> list[int]: ...  # noqa: D102


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
    max_difference: float = field(
        metadata={"help": "largest difference of a logit, of all compared"}
    )
    min_argmax_agreement: float
    max_mean_kl: float
    texts_tokenized: int
    texts_tokenized_equal: int
    texts_left_out: int = field(
        metadata={"help": "texts that llama.cpp is known to read otherwise with this tokenizer"}
    )
    chats_rendered: int
    chats_rendered_equal: int
    answers: float | None = field(
        metadata={"help": "share of held-out questions that the file answers right; null: none"}
    )
    run_answers: float | None = field(metadata={"help": "the same of the run itself"})
    answers_asked: int
    answers_stopped: int
    run_answers_stopped: int

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def check_parity(
    reference: Reference,
    gguf_path: Path,
    runtime: ChatRuntime,
    settings: ExportingSettings,
    answer: Callable[[Sequence[int]], Sequence[Scored]],
    *,
    quantization: str,
    context: int,
    threads: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Parity:
    """Compare a GGUF file with the run that it was made from.

    Args:
        reference: the run, measured.
        gguf_path: the file.
        runtime: the file in the chat runtime.
        settings: the thresholds.
        answer: has the file in its runtime answer rows (places among `held_out.chats`), and
            judges the answers.
        quantization: of the file.
        context: tokens at most.
        threads: for llama.cpp; 0 for one a core.
        progress: told in a few words what is being done.

    Raises:
        UnsupportedModel: llama.cpp does not load the file.
        Unavailable: there is no llama.cpp to ask.
    """
    reasons: list[str] = []
    with GgufModel(gguf_path, context=context, threads=threads) as file:
        progress("comparing tokens")
        equal_texts, first = _compare_tokens(file, reference.texts)
        if first is not None:
            reasons.append(
                f"llama.cpp tokenises {len(reference.texts) - equal_texts} texts otherwise: {first}"
            )
        endless = [name for token, name in reference.ends.items() if not file.ends(token)]
        if endless:
            reasons.append(f"generation would not stop at {', '.join(endless)}")
        progress("comparing logits")
        found = _compare_logits(reference, file)

    least, most = settings.min_argmax_agreement[quantization], settings.max_mean_kl[quantization]
    if found.agreement < least:
        reasons.append(f"the most likely token agrees in {found.agreement:.1%}, {least:.0%} needed")
    if not found.mean_kl <= most:  # also catches NaN
        reasons.append(f"the mean KL divergence is {found.mean_kl:.4f}, at most {most:g} allowed")

    progress("comparing rendered chats")
    chats = [reference.held_out.chats[place][:-1] for place in reference.places]
    equal_chats = sum(
        _same_prompt(prompt, runtime, chat, reference.bos)
        for chat, prompt in zip(chats, reference.prompts, strict=True)
    )
    if equal_chats < len(chats):
        reasons.append(f"{len(chats) - equal_chats} of {len(chats)} chats are rendered otherwise")

    progress("generating answers")
    answers = answer(reference.places)
    stopped, run_stopped = _stopped(answers), _stopped(reference.answers)
    if stopped < run_stopped // 2:
        reasons.append(
            f"{stopped} of {len(answers)} answers come to an end, of the run's own {run_stopped}"
        )
    return Parity(
        passed=not reasons,
        reasons=reasons,
        quantization=quantization,
        split=reference.held_out.split,
        rows=len(reference.places),
        tokens_compared=found.positions,
        argmax_agreement=found.agreement,
        mean_kl=found.mean_kl,
        max_difference=found.max_difference,
        min_argmax_agreement=least,
        max_mean_kl=most,
        texts_tokenized=len(reference.texts),
        texts_tokenized_equal=equal_texts,
        texts_left_out=reference.left_out,
        chats_rendered=len(chats),
        chats_rendered_equal=equal_chats,
        answers=_right(answers),
        run_answers=_right(reference.answers),
        answers_asked=len(answers),
        answers_stopped=stopped,
        run_answers_stopped=run_stopped,
    )


def _right(answers: Sequence[Scored]) -> float | None:
    return sum(one.right for one in answers) / len(answers) if answers else None


def _stopped(answers: Sequence[Scored]) -> int:
    return sum(one.stopped for one in answers)


def _compare_tokens(file: GgufModel, texts: Sequence[Tokenised]) -> tuple[int, str | None]:
    """How many texts give equal ids, and the beginning of the first that does not."""
    equal, first = 0, None
    for one in texts:
        bare, full = file.tokenize(one.text), file.tokenize(one.text, add_special=True)
        same = (one.bare, one.full) == (bare, full)
        equal += same
        if not same and first is None:
            first = repr(one.text[:60])
    return equal, first


def _same_prompt(prompt: Prompt, runtime: ChatRuntime, chat: Sequence[Message], bos: str) -> bool:
    """Whether the file's own template gives the model the tokens that the run is given.

    The text alone would not tell: llama.cpp takes a BOS off what a template renders where its
    tokenizer adds one, and a file that says the wrong thing there begins with two, or with none.
    """
    text = runtime.render(chat)
    if prompt.tokens is not None:
        return runtime.tokenize(text) == prompt.tokens
    return prompt.text in (text, bos + text)


@dataclass(frozen=True)
class _Logits:
    positions: int
    agreement: float
    mean_kl: float
    max_difference: float


def _compare_logits(reference: Reference, file: GgufModel) -> _Logits:
    """Most likely next tokens, KL(run || file) in nats, and the largest difference of a logit."""
    agreements: list[NDArray[np.bool_]] = []
    divergences: list[NDArray[np.float64]] = []
    largest, at = 0.0, 0
    for row in reference.rows:
        truth = reference.logits.read(at, row.last)
        at += row.last
        found = file.logits(row.ids, row.last)
        agreements.append(truth.argmax(-1) == found.argmax(-1))
        largest = max(largest, float(np.abs(truth - found).max()))
        run, other = _log_softmax(truth), _log_softmax(found)
        divergences.append((np.exp(run) * (run - other)).sum(-1))
    return _Logits(
        at,
        float(np.mean(np.concatenate(agreements))),
        float(np.mean(np.concatenate(divergences))),
        largest,
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised
