"""Pre-train forge-nano, then teach it to chat. Two phases, one trainer.

    # Phase 1, code: constant learning rate after a warm-up, until --tokens or SIGTERM.
    python scripts/nano/train.py --work-dir /tmp/nano --phase code --tokens 16000000

    # Phase 2, chat: from phase 1's checkpoint, learning rate decaying to zero.
    python scripts/nano/train.py --work-dir /tmp/nano --phase chat --chats chats.jsonl \
        --tokens 6000000

    python scripts/nano/export.py --work-dir /tmp/nano     # then: write the assets

Each phase keeps one checkpoint (``code.pt``, ``chat.pt``) in the work folder, replaced
atomically every --save-minutes, at the end and on SIGTERM, with the optimizer, the data cursor
and the random state in it: the same command run again goes on where it stopped. Each phase
appends one JSON object a line to ``code.log`` or ``chat.log``: tokens seen, loss, tokens a
second and, at checkpoints, the bits per byte of the held-out modules.

A chat file has rows ``{"messages": [{"role": ..., "content": ...}, ...]}``. Chats are rendered
by the chat template and packed several to a row; every token is learned from, those of
prompts with the weight --prompt-weight.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

# Read when PyTorch is imported. Threads that spin while they wait cost a shared machine dearly:
# with another process on one of two cores, training runs five times faster with this line.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import data
import numpy as np
import numpy.typing as npt
import tokenizer as tok
import torch
import torch.nn.functional as F
from model import Config, Nano
from tokenizers import Tokenizer
from torch import Tensor

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Batch = tuple[IntArray, FloatArray]
CODE_LENGTH, CHAT_LENGTH = 1024, 2048
NO_LIMIT = 10**15


# ---------------------------------------------------------------- data


def prepare(work: Path, seed: int) -> None:
    """Collect the text, train the tokenizer and store the tokens, once per work folder."""
    if (work / "data.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    train, held, sources = data.collect(seed)
    tokenizer = tok.train(train, seed)
    tokenizer.save(str(work / "tokenizer.json"))
    train = [document for document in train if document.path not in data.DROPPED]
    counts = {}
    for name, documents in (("train", train), ("held_out", held)):
        pieces: list[int] = [tok.DOCUMENT_END_ID]
        for start in range(0, len(documents), 256):
            texts = [d.text for d in documents[start : start + 256]]
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                pieces += encoding.ids
                pieces.append(tok.DOCUMENT_END_ID)
        np.array(pieces, dtype=np.uint16).tofile(work / f"{name}.bin")
        counts[name] = {
            "files": len(documents),
            "bytes": sum(len(d.text.encode()) for d in documents),
            "tokens": len(pieces),
        }
    report = {
        "seed": seed,
        **counts,
        "held_out_modules": sorted(data.HELD_OUT),
        "sources": [asdict(source) for source in sources],
    }
    replace_text(work / "data.json", json.dumps(report, indent=2))


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it there."""
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


class Stream(Protocol):
    """An endless, resumable source of rows of token ids and target weights."""

    cursor: int

    def row(self) -> Batch:
        """The next row: length + 1 ids, and the weight of each of them as a target."""
        ...


class CodeStream:
    """Windows of the token file in an order drawn from the seed, epoch after epoch.

    With `seen`, a number of windows that phase 1 has read, the windows of the first epoch that
    overlap them least come first.
    """

    def __init__(self, path: Path, length: int, seed: int, seen: int = 0) -> None:
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.length, self.seed, self.seen, self.cursor = length, seed, seen, 0
        self.windows = (len(self.tokens) - 1) // length
        self.epoch, self.order = -1, np.zeros(0, dtype=np.int64)

    def _shuffled(self, windows: int, epoch: int) -> IntArray:
        return np.random.default_rng([self.seed, epoch]).permutation(windows)

    def row(self) -> Batch:
        """The next window."""
        epoch, index = divmod(self.cursor, self.windows)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._shuffled(self.windows, epoch)
            if self.seen and epoch == 0:
                old = self._shuffled((len(self.tokens) - 1) // CODE_LENGTH, 0)[: self.seen]
                read = np.zeros(len(self.tokens), dtype=np.bool_)
                for window in old:
                    read[window * CODE_LENGTH : (window + 1) * CODE_LENGTH] = True
                share = read[: self.windows * self.length].reshape(self.windows, -1).mean(axis=1)
                self.order = self.order[np.argsort(share[self.order], kind="stable")]
        self.cursor += 1
        start = int(self.order[index]) * self.length
        ids = self.tokens[start : start + self.length + 1].astype(np.int64)
        return ids, np.ones(len(ids), dtype=np.float32)


def render_chat(
    messages: list[dict[str, str]], tokenizer: Tokenizer, prompt_weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of one chat by the chat template, and the weight of each as a target."""
    ids: list[int] = []
    weights: list[float] = []
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    for message in messages:
        head = f"{message['role']}\n"
        turn = tokenizer.encode(head + message["content"], add_special_tokens=False)
        learned = 1.0 if message["role"] == "assistant" else prompt_weight
        in_content = [end > len(head) for _, end in turn.offsets]
        ids += [tok.TURN_START_ID, *turn.ids, tok.TURN_END_ID, *newline]
        weights += [prompt_weight, *(learned if inside else prompt_weight for inside in in_content)]
        weights += [learned, *[prompt_weight] * len(newline)]
    return ids, weights


class ChatStream:
    """Rows of whole chats, packed by first fit from a window of chats in shuffled order."""

    LOOKAHEAD = 64

    def __init__(
        self, path: Path, tokenizer: Tokenizer, length: int, prompt_weight: float, seed: int
    ) -> None:
        self.length, self.seed, self.cursor = length, seed, 0
        self.chats: list[tuple[list[int], list[float]]] = []
        self.dropped = 0
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                chat = render_chat(json.loads(line)["messages"], tokenizer, prompt_weight)
                if len(chat[0]) > length:
                    self.dropped += 1
                else:
                    self.chats.append(chat)
        if not self.chats:
            raise ValueError(f"{path}: no chat of at most {length} tokens")
        self.rows = self._pack()

    def _endless(self) -> Iterator[int]:
        epoch = 0
        while True:
            order = list(range(len(self.chats)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            yield from order
            epoch += 1

    def _pack(self) -> Iterator[Batch]:
        source = self._endless()
        waiting = [next(source) for _ in range(self.LOOKAHEAD)]
        while True:
            ids, weights = [tok.DOCUMENT_END_ID], [0.0]
            position = 0
            while position < len(waiting):
                chat_ids, chat_weights = self.chats[waiting[position]]
                if len(ids) + len(chat_ids) <= self.length + 1:
                    ids += chat_ids
                    weights += chat_weights
                    waiting.pop(position)
                    waiting.append(next(source))
                else:
                    position += 1
                if self.length + 1 - len(ids) < 16:
                    break
            padding = self.length + 1 - len(ids)
            ids += [tok.DOCUMENT_END_ID] * padding
            weights += [0.0] * padding
            yield np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32)

    def row(self) -> Batch:
        """The next row of packed chats."""
        self.cursor += 1
        return next(self.rows)

    def seek(self, cursor: int) -> None:
        """Go to a cursor by replaying the packing, which is cheap."""
        while self.cursor < cursor:
            self.row()


class EchoStream:
    """Code rows in which spans come back later, word for word.

    Answers are copied out of documents. A span that was seen before can only be predicted by
    finding it again in the context, so these rows teach a small model to copy exactly, which
    plain code hardly does within so few tokens.
    """

    SPAN = (8, 160)  # tokens

    def __init__(self, code: CodeStream, share: float, seed: int) -> None:
        self.code, self.share, self.seed = code, share, seed

    def row(self) -> Batch:
        """A code row; with the probability `share`, one with echoes."""
        rng = random.Random(f"{self.seed}/echo/{self.code.cursor}")
        ids, weights = self.code.row()
        if rng.random() >= self.share:
            return ids, weights
        spans: list[IntArray] = []
        pieces: list[IntArray] = []
        position, filled = 0, 0
        while filled < len(ids):
            if spans and rng.random() < 0.5:
                piece = rng.choice(spans)
            else:
                piece = ids[position : position + rng.randint(*self.SPAN)]
                position += len(piece)
                spans.append(piece)
            pieces.append(piece)
            filled += len(piece)
        return np.concatenate(pieces)[: len(ids)], weights


class MixedStream:
    """Chat rows and code rows, each row's kind drawn from the seed and the row's number."""

    def __init__(
        self,
        chats: ChatStream,
        code: CodeStream,
        chat_share: float,
        echo_share: float,
        seed: int,
    ) -> None:
        self.chats, self.code, self.share, self.seed = chats, code, chat_share, seed
        self.echo = EchoStream(code, echo_share, seed)
        self.cursor = 0

    def _is_chat(self, cursor: int) -> bool:
        return random.Random(f"{self.seed}/mix/{cursor}").random() < self.share

    def row(self) -> Batch:
        """The next row of either kind."""
        kind = self.chats if self._is_chat(self.cursor) else self.echo
        self.cursor += 1
        return kind.row()

    def seek(self, cursor: int) -> None:
        """Go to a cursor, counting how many rows of each kind lie before it."""
        chats = sum(self._is_chat(i) for i in range(cursor))
        self.cursor = cursor
        self.chats.seek(chats)
        self.code.cursor = cursor - chats


def next_batch(stream: Stream, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and target weights of the next `rows` rows."""
    ids, weights = zip(*(stream.row() for _ in range(rows)), strict=True)
    tokens = torch.from_numpy(np.stack(ids)).to(device)
    target_weights = torch.from_numpy(np.stack(weights)[:, 1:]).to(device)
    return tokens[:, :-1], tokens[:, 1:], target_weights


# ---------------------------------------------------------------- model


def mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 for matrix products; weights, norms' statistics and the loss stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def weighted_loss(model: Nano, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean nll of the targets in nats, weighted."""
    with mixed_precision(inputs.device):
        logits = model(inputs)
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (nll * weights.flatten()).sum() / weights.sum()


def make_optimizer(model: Nano, learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


@torch.no_grad()
def bits_per_byte(
    model: Nano, path: Path, lengths: list[int], device: torch.device, limit: int | None = None
) -> float:
    """Bits per byte of the held-out text: its whole nll in nats / ln 2 / its bytes.

    Windows of 1,024 tokens without overlap; with `limit`, every k-th window only.
    """
    tokens = np.fromfile(path, dtype=np.uint16).astype(np.int64)
    window = CODE_LENGTH
    starts = list(range(0, len(tokens) - 1, window))
    if limit is not None and len(tokens) > limit:
        starts = starts[:: math.ceil(len(tokens) / limit)]
    sizes = torch.tensor(lengths, dtype=torch.float64)
    nats, size = 0.0, 0.0
    for start in starts:
        ids = torch.from_numpy(tokens[start : start + window + 1]).to(device)[None]
        with mixed_precision(device):
            logits = model(ids[:, :-1])
        nats += F.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum").item()
        size += sizes[ids[0, 1:].cpu()].sum().item()
    return nats / math.log(2) / size


# ---------------------------------------------------------------- training


@dataclass
class State:
    """What a phase has done so far; stored in its checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cursor: int = 0
    code_start: int = 0  # windows that phase 1 had read when phase 2 began
    phase_1_tokens: int = 0


def save_checkpoint(
    path: Path, model: Nano, optimizer: torch.optim.Optimizer, state: State, args: dict[str, Any]
) -> None:
    """Write the whole state beside the checkpoint, sync it to disk, rename it into place."""
    staged = path.with_name(path.name + ".tmp")
    with staged.open("wb") as file:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": asdict(state),
                "rng": torch.get_rng_state(),
                "args": args,
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def rate_factor(args: argparse.Namespace, state: State) -> float:
    """The learning rate as a fraction of --lr: warm-up and plateau, or decay to zero."""
    if args.phase == "code":
        return min(1.0, (state.step + 1) / args.warmup_steps)
    progress = state.tokens / args.tokens
    if args.minutes is not None:
        progress = max(progress, state.seconds / 60 / args.minutes)
    progress = min(1.0, progress)
    return 1.0 - progress if args.decay == "linear" else 1.0 - math.sqrt(progress)


def train(args: argparse.Namespace) -> None:
    """Run one phase until its target, or until SIGTERM."""
    work: Path = args.work_dir
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    prepare(work, args.seed)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    lengths = tok.byte_lengths(tokenizer)

    model = Nano(Config()).to(device)
    optimizer = make_optimizer(model, args.lr)
    state = State()
    checkpoint = work / f"{args.phase}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        state = State(**saved["state"])
        torch.set_rng_state(saved["rng"].cpu())
    elif args.phase == "chat":
        saved = torch.load(work / "code.pt", map_location=device, weights_only=True)
        state.code_start = saved["state"]["cursor"]
        state.phase_1_tokens = saved["state"]["tokens"]
    else:
        saved = None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    code = CodeStream(work / "train.bin", args.length, args.seed, seen=state.code_start)
    stream: Stream = code
    if args.phase == "chat":
        chats = ChatStream(args.chats, tokenizer, args.length, args.prompt_weight, args.seed)
        mixed = MixedStream(chats, code, args.chat_share, args.echo_share, args.seed)
        mixed.seek(state.cursor)
        stream = mixed
    else:
        code.cursor = state.cursor

    stopping = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log = (work / f"{args.phase}.log").open("a", encoding="utf-8", buffering=1)

    def write(**fields: object) -> None:
        log.write(json.dumps({"phase": args.phase, **fields}) + "\n")

    def save() -> None:
        state.cursor = stream.cursor
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        save_checkpoint(checkpoint, model, optimizer, state, settings)
        bpb = bits_per_byte(model, work / "held_out.bin", lengths, device, args.eval_tokens)
        write(tokens=state.tokens, held_out_bpb=round(bpb, 4))

    write(
        start=state.step, tokens=state.tokens, parameters=sum(map(Tensor.numel, model.parameters()))
    )
    if args.phase == "chat":
        write(chats=len(chats.chats), dropped=chats.dropped)
    compute_loss = torch.compile(weighted_loss, dynamic=False) if args.compile else weighted_loss
    losses: list[float] = []
    last_save = last_log = time.monotonic()
    logged_tokens, fresh = state.tokens, False
    while not stopping and state.tokens < args.tokens:
        if args.minutes is not None and state.seconds >= args.minutes * 60:
            break
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate_factor(args, state)
        inputs, targets, weights = next_batch(stream, args.batch, device)
        loss = compute_loss(model, inputs, targets, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        state.step += 1
        state.tokens += inputs.numel()
        now = time.monotonic()
        state.seconds += now - began
        fresh = False
        if now - last_log >= args.log_seconds:
            write(
                step=state.step,
                tokens=state.tokens,
                loss=round(sum(losses) / len(losses), 4),
                lr=optimizer.param_groups[0]["lr"],
                tokens_per_second=round((state.tokens - logged_tokens) / (now - last_log)),
                minutes=round(state.seconds / 60, 1),
            )
            losses.clear()
            last_log, logged_tokens = now, state.tokens
        if now - last_save >= args.save_minutes * 60:
            save()
            last_save, fresh = time.monotonic(), True
    if not fresh:
        save()
    write(end=state.step, tokens=state.tokens, stopped_by_signal=stopping)


def parse() -> argparse.Namespace:
    """Read the command line; defaults that depend on the phase are filled in here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--work-dir", type=Path, required=True, help="folder outside the repository"
    )
    parser.add_argument("--phase", choices=("code", "chat"), default="code")
    parser.add_argument("--tokens", type=int, help="end after so many tokens in this phase")
    parser.add_argument("--minutes", type=float, help="end after so many minutes of training")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--decay", choices=("linear", "sqrt"), default="linear")
    parser.add_argument("--batch", type=int, help="rows a step (code: 8, chat: 4)")
    parser.add_argument("--length", type=int, help="tokens a row (code: 1024, chat: 2048)")
    parser.add_argument("--chats", type=Path, help="chat phase: a JSON Lines file of messages")
    parser.add_argument(
        "--chat-share", type=float, default=0.7, help="share of rows that are chats"
    )
    parser.add_argument(
        "--echo-share", type=float, default=0.7, help="chat phase: share of code rows with echoes"
    )
    parser.add_argument("--prompt-weight", type=float, default=0.3, help="loss weight of prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="1.5x on a CPU; needs a C++ compiler"
    )
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--log-seconds", type=float, default=20.0)
    parser.add_argument("--eval-tokens", type=int, default=40_000, help="held-out tokens measured")
    args = parser.parse_args()
    if args.phase == "chat" and args.chats is None:
        parser.error("--phase chat needs --chats")
    if args.tokens is None and args.minutes is None:
        parser.error("give --tokens, --minutes, or both for whichever comes first")
    args.tokens = args.tokens or NO_LIMIT
    args.batch = args.batch or (8 if args.phase == "code" else 4)
    args.length = args.length or (CODE_LENGTH if args.phase == "code" else CHAT_LENGTH)
    return args


if __name__ == "__main__":
    train(parse())
