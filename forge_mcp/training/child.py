"""The process in which training happens: `python -m forge_mcp.training.child REQUEST.json`.

Standard output carries events, one JSON object a line: {"kind": …, "payload": {…}}, where kind is
that of an Event, or "heartbeat", "result", "error". Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from forge_mcp import machine
from forge_mcp.errors import (
    BadInput,
    Cancelled,
    ForgeError,
    NotFound,
    TrainingFailed,
    UnsupportedModel,
    from_os_error,
)
from forge_mcp.locks import FileLock, wait_for_one
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.checkpoints import latest_checkpoint
from forge_mcp.workspace import fsync_path, hash_file, is_full, write_file

if TYPE_CHECKING:
    from forge_mcp.training.bases import Base, LoadedBase
    from forge_mcp.training.batching import Example

PARENT_POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 2.0
REQUEST, STOP = "request.json", "stop"  # files of the parent's temporary folder
START = ("residual/residual.safetensors", "initial_adapters.safetensors")  # see run.py
LOG = "training.log"  # in the run: what the child prints; locked by the child that writes there
OUT_OF_MEMORY_ADVICE = (
    "Train with a smaller batch_size, rank or max_seq_length, on a smaller base, or close other "
    "programs."
)


class ChildRequest(BaseModel):
    """What the child is asked to do."""

    model_config = ConfigDict(extra="forbid")

    train: Path
    valid: Path
    base: str
    base_name: str | None = None
    settings: TrainingSettings
    run: Path
    control: Path
    parent: int
    resume: bool = False
    dry_run: bool = False  # one step, of which nothing is kept; the result is a `dry_run.DryRun`
    slots: list[Path] = []  # locks; one of them is held while training, so that few train at once


def main(arguments: list[str]) -> int:
    """Run a request; returns the exit code."""
    # The pipe to the parent is kept apart, so that no library can write into it.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()
    terminated = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: terminated.set())

    def emit(kind: str, **payload: Any) -> None:
        with lock:
            events.write(json.dumps({"kind": kind, "payload": payload}) + "\n")
            events.flush()

    request: ChildRequest | None = None
    try:
        request = ChildRequest.model_validate_json(Path(arguments[0]).read_text("utf-8"))
        machine.die_with_parent()
        watched = (request.parent, request.control.parent)
        threading.Thread(target=_die_with, args=watched, daemon=True).start()
        threading.Thread(target=_beat, args=(emit,), daemon=True).start()
        emit("result", **perform(request, emit, terminated))
        return 0
    except BrokenPipeError:  # nobody listens: the parent was killed
        if request is not None:
            _clean(request.control.parent)
    except ForgeError as error:
        emit("error", **error.as_dict())
    except OSError as error:
        # Told before it is written down: the log may be on a disk that is full.
        emit("error", **from_os_error(error, "write the run").as_dict())
        traceback.print_exc()
    except Exception as error:
        emit("error", **_in_words(error, request.run if request else None).as_dict())
        traceback.print_exc()
    return 1


def perform(request: ChildRequest, emit: Any, terminated: threading.Event) -> dict[str, Any]:
    """Load, attach adapters, train, save. Returns `Trained`, or `DryRun`, as a dict.

    Args:
        terminated: set when this process is told to end by a signal.

    Raises:
        ForgeError: see trainer.py, adapters.py, batching.py, bases.py, trackers.py.
    """
    from forge_mcp.training.adapters import adapter_weights
    from forge_mcp.training.bases import load_base, resolve_base
    from forge_mcp.training.run import ADAPTERS
    from forge_mcp.training.trackers import make_trackers, require_packages
    from forge_mcp.training.trainer import FineTuneTrainer

    def check() -> None:
        if terminated.is_set():
            raise Cancelled(
                "Training was stopped.",
                cause="its process was told to end by a signal",
                next_step="Run it again: it goes on from where it was, if it had made a step.",
            )
        if request.control.exists():
            raise Cancelled("Training was stopped.", cause="somebody asked for it")

    def tell(message: str, level: str = "info") -> None:
        emit("log", level=level, message=message)

    settings = request.settings
    require_packages(settings.trackers)
    _wait_for_turn(request, check, tell)
    mx = machine.mlx()
    mx.random.seed(settings.seed)
    base = resolve_base(request.base)
    base = replace(base, name=request.base_name or base.name)
    emit("progress", done=0, total=None, message=f"loading {base.name}")
    with _vanishing(base):
        loaded = load_base(base, lazy=True)
        for notice in loaded.notices:
            tell(notice)
        train, valid, system_prompt = _read_data(request, loaded.tokenizer, tell)
        check()
        _attach(request, loaded, system_prompt, emit, tell)
    watchers = [] if request.dry_run else make_trackers(settings, request.run, base.name, tell)
    trainer = FineTuneTrainer(loaded.model, settings, request.run, emit, check, watchers)
    if request.dry_run:
        return asdict(trainer.dry_run(train, valid))
    trained = trainer.train(train, valid, resume=request.resume)
    mx.save_safetensors(str(request.run / ADAPTERS), adapter_weights(loaded.model))
    return asdict(trained)


def _wait_for_turn(request: ChildRequest, check: Callable[[], None], tell: Any) -> None:
    """Until no other child writes into the run, and one of the slots is free.

    Both are held until this process ends, however it ends. A child whose parent was killed may
    live for a moment longer: two must not write into one run.
    """
    FileLock(request.run / LOG).wait(
        check, lambda: tell("The former training of this run has not ended yet; waiting for it.")
    )
    if request.slots:
        wait_for_one(
            [FileLock(path) for path in request.slots],
            check,
            lambda: tell("Another training is under way; this one waits for it."),
        )


def _read_data(
    request: ChildRequest, tokenizer: Any, tell: Any
) -> tuple[list[Example], list[Example], str]:
    """(training examples, validation examples, system prompt)."""
    from forge_mcp.training.batching import (
        PartWeights,
        check_not_empty,
        read_rows,
        sample,
        tokenise,
    )

    settings = request.settings
    longest = settings.max_seq_length
    rows = list(read_rows(request.train))
    held_out = sample(list(read_rows(request.valid)), settings.valid_examples, settings.seed)
    weights = PartWeights(settings.reasoning_weight, settings.quote_weight, settings.answer_weight)
    train = tokenise(rows, tokenizer, longest, weights)
    valid = tokenise(held_out, tokenizer, longest)  # there every token counts the same
    check_not_empty(train, longest)
    for name, one in (("training", train), ("validation", valid)):
        if one.too_long:
            tell(
                f"{one.too_long} {name} examples are longer than {longest} tokens and are left "
                "out.",
                "warning",
            )
    learnt = [example for example in train.examples if example.weight > 0]
    if not learnt:
        raise BadInput(
            "There is nothing to learn.",
            cause="training.reasoning_weight, quote_weight and answer_weight give every token of "
            "every answer the weight 0",
            next_step="Raise the weight of a part that the answers have, e.g. answer_weight.",
        )
    if len(learnt) < len(train.examples):
        tell(
            f"{len(train.examples) - len(learnt)} training examples are left out: by "
            "reasoning_weight, quote_weight and answer_weight nothing of them is learnt.",
            "warning",
        )
    first = rows[0].messages[0]
    return learnt, valid.examples, first.content if first.role == "system" else ""


def _attach(
    request: ChildRequest, loaded: LoadedBase, system_prompt: str, emit: Any, tell: Any
) -> None:
    """Give the model its adapters: those the run began with, where it goes on, else new ones."""
    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.run import CONFIG, INITIAL, attach_saved, describe_run, save_frozen

    settings, run = request.settings, request.run
    if request.resume and latest_checkpoint(run) is not None:
        config = _saved_start(run, loaded.base)
        if config is not None:
            emit("progress", done=0, total=None, message="reading the run's split weights")
            attach_saved(loaded.model, run, config, INITIAL, dropout=settings.lora_dropout)
            return
        tell("The split weights of this run are damaged or not its own: made anew.", "warning")
    emit("progress", done=0, total=None, message=f"splitting weights ({settings.init_method})")
    adapters = attach_adapters(loaded.model, settings, loaded.dtype)
    tell(f"{adapters.summary()}.")
    for notice in adapters.notices:
        tell(notice, "warning")
    if request.dry_run:
        return
    config = describe_run(loaded, settings, adapters.frozen, system_prompt)
    save_frozen(run, adapters.frozen, adapters.initial)
    for name in START:
        fsync_path(run / name)
    # Written last, so that whoever finds it finds the files it tells of.
    config["checksums"] = {name: hash_file(run / name) for name in START}
    write_file(run / CONFIG, json.dumps(config, indent=2) + "\n")


def _saved_start(run: Path, base: Base) -> dict[str, Any] | None:
    """adapter_config.json, if it and what it tells of are whole and of this base."""
    from forge_mcp.training.run import CONFIG

    try:
        config: dict[str, Any] = json.loads((run / CONFIG).read_text("utf-8"))
        whole = all(hash_file(run / name) == config["checksums"][name] for name in START)
        same = config["base"]["weights_sha256"] == base.weights_sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return config if whole and same else None


@contextlib.contextmanager
def _vanishing(base: Base) -> Iterator[None]:
    """What fails while the base is read fails in words where its files are not what they were."""
    before = _stamps(base.path)
    try:
        yield
    except (OSError, RuntimeError, UnsupportedModel) as error:
        after = _stamps(base.path)
        gone = sorted(name for name in before if after.get(name) != before[name])
        if not gone:
            raise
        raise NotFound(
            f"The base model '{base.name}' was changed or deleted while it was being read.",
            cause=f"in {base.path}: {', '.join(gone)}",
            next_step="Put it back there, or fetch it again, and run the training again.",
        ) from error


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file of a base."""
    found = {}
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            state = path.stat()
            found[path.name] = (state.st_size, state.st_mtime_ns)
    return found


def _die_with(parent: int, folder: Path) -> None:
    """End this process as soon as its parent is gone, so that no orphan trains on."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    _clean(folder)
    os._exit(1)


def _beat(emit: Any) -> None:
    """Tell the parent now and then that this process runs at all."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        while True:
            emit("heartbeat")
            time.sleep(HEARTBEAT_SECONDS)


def _clean(folder: Path) -> None:
    """Remove the temporary folder of a parent that was killed: nobody else would."""
    for name in (REQUEST, STOP):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _in_words(error: Exception, run: Path | None = None) -> ForgeError:
    text = str(error).strip() or type(error).__name__
    # MLX tells of a failed write as a RuntimeError that does not say why.
    if isinstance(error, RuntimeError) and run is not None and is_full(run):
        return from_os_error(OSError(errno.ENOSPC, text, str(run)), "write the run")
    memory = isinstance(error, MemoryError) or any(
        sign in text.lower() for sign in ("unable to allocate", "out of memory", "[malloc")
    )
    return TrainingFailed(
        "Training ran out of memory." if memory else "Training failed.",
        cause=f"{type(error).__name__}: {text.splitlines()[0]}",
        next_step=OUT_OF_MEMORY_ADVICE
        if memory
        else "Run it again; if it fails again, this is a defect: please report it with the cause.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
