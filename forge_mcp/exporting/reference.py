"""What the run itself computes on held-out rows: the measure of every file that is made of it.

It is taken once and kept on the disk, so that the run need not lie in memory beside the file that
is compared with it, and so that several files of one run are held against the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import BadInput
from forge_mcp.machine import mlx
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.workspace import require_space

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


@dataclass(frozen=True)
class HeldOut:
    """Rows that the run was not trained on: whole chats that end in the assistant's turn."""

    split: str
    chats: list[list[Message]]


@dataclass(frozen=True)
class Tokenised:
    """A text and its tokens, without and with what the tokenizer adds around it."""

    text: str
    bare: list[int]
    full: list[int]


@dataclass(frozen=True)
class Prompt:
    """A chat up to the assistant's turn, as text and as the tokens that the model is given.

    `tokens` is None where llama.cpp is known to read some of the text otherwise.
    """

    text: str
    tokens: list[int] | None


@dataclass(frozen=True)
class Row:
    """Token ids of a chat, the last `last` of whose positions are compared."""

    ids: list[int]
    last: int


@dataclass(frozen=True)
class StoredLogits:
    """The run's logits, one position after another, on the disk."""

    path: Path
    vocabulary: int

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Those of `count` positions: (count, vocabulary)."""
        values = np.fromfile(
            self.path, np.float32, count * self.vocabulary, offset=4 * start * self.vocabulary
        )
        return values.reshape(count, self.vocabulary)


@dataclass(frozen=True)
class Reference:
    """A run, measured.

    `places` are the rows of `held_out.chats` that fit the context; `left_out` counts the texts
    whose tokens cannot be compared; `prompts` are the chats up to the assistant's turn, `bos` what
    the tokenizer begins a text with;
    `ends` the tokens that end a turn; `rows` what is compared, and `logits` what the run computes
    for them; `answers` what the run itself answers to the first of the places.
    """

    held_out: HeldOut
    places: list[int]
    texts: list[Tokenised]
    left_out: int
    prompts: list[Prompt]
    bos: str
    ends: dict[int, str]
    rows: list[Row]
    logits: StoredLogits
    answers: Sequence[Scored]


def measure_run(
    model: Any,
    tokenizer: Any,
    held_out: HeldOut,
    path: Path,
    *,
    positions: int,
    context: int,
    comparable: Callable[[str], str | None],
    answer: Callable[[Sequence[int]], Sequence[Scored]],
    progress: Callable[[str], None] = lambda message: None,
) -> Reference:
    """Measure a run.

    Args:
        model: the run's in MLX, with adapters, ready to evaluate.
        tokenizer: the run's (mlx_lm's TokenizerWrapper).
        held_out: rows to compare on; those longer than `context` are left out.
        path: of the file that holds the logits, as raw float32.
        positions: tokens to compare at most.
        context: tokens of a row at most.
        comparable: the form of a text in which llama.cpp must give the same tokens; None where it
            is known not to (`exporting.tokenizer.Vocabulary.comparable`).
        answer: has the run answer rows (places among `held_out.chats`), and judges the answers.
        progress: told in a few words what is being done.

    Raises:
        BadInput: no held-out row fits.
        OutOfSpace: the disk cannot hold the logits.
    """
    rendered = [_render(tokenizer, chat, prompt=False) for chat in held_out.chats]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in rendered]
    places = [index for index, ids in enumerate(encoded) if 1 < len(ids) <= context]
    if not places:
        raise BadInput(
            "The export cannot be checked: no held-out example fits the context.",
            cause=f"{len(encoded)} rows in the {held_out.split} split, a context of {context}",
            next_step="Raise serving.num_ctx, or make a dataset with a test split.",
        )
    progress("computing the run's logits")
    rows, left = [], positions
    for place in places:
        if left > 0:
            rows.append(Row(encoded[place], min(len(encoded[place]), POSITIONS_PER_ROW, left)))
            left -= rows[-1].last
    logits = _write_logits(model, rows, path)
    progress("letting the run answer")
    name = tokenizer.convert_ids_to_tokens
    texts = [*(rendered[place] for place in places), *TEXTS]
    comparisons = [text for text in map(comparable, texts) if text is not None]
    return Reference(
        held_out=held_out,
        places=places,
        texts=[
            Tokenised(one, tokenizer.encode(one, add_special_tokens=False), tokenizer.encode(one))
            for one in comparisons
        ],
        left_out=len(texts) - len(comparisons),
        prompts=[_prompt(tokenizer, held_out.chats[at][:-1], comparable) for at in places],
        bos=tokenizer.bos_token or "",
        ends={token: str(name(token)) for token in sorted(tokenizer.eos_token_ids)},
        rows=rows,
        logits=logits,
        answers=answer(places),
    )


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


def _write_logits(model: Any, rows: Sequence[Row], path: Path) -> StoredLogits:
    total, vocabulary = sum(row.last for row in rows), 0
    with path.open("wb") as file:
        for row in rows:
            found = tail_logits(model, row.ids, row.last)
            if not vocabulary:
                vocabulary = found.shape[1]
                require_space(path.parent, total * vocabulary * 4, "compare the export")
            file.write(found.tobytes())
    return StoredLogits(path, vocabulary)


def _prompt(
    tokenizer: Any, chat: Sequence[Message], comparable: Callable[[str], str | None]
) -> Prompt:
    text = _render(tokenizer, chat, prompt=True)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return Prompt(text, None if comparable(text) is None else tokens)


def _render(tokenizer: Any, chat: Sequence[Message], *, prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        [message.model_dump() for message in chat], tokenize=False, add_generation_prompt=prompt
    )
    return text
