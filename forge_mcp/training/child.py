"""The process in which training happens: `python -m forge_mcp.training.child REQUEST.json`.

Standard output carries events, one JSON object a line: {"kind": …, "payload": {…}}, where kind is
that of an Event, or "heartbeat", "result", "error". Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from forge_mcp import machine
from forge_mcp.errors import Cancelled, ForgeError, TrainingFailed, from_os_error
from forge_mcp.locks import FileLock, wait_for_one
from forge_mcp.settings import TrainingSettings

PARENT_POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 2.0
REQUEST, STOP = "request.json", "stop"  # files of the parent's temporary folder
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
    slots: list[Path] = []  # locks; one of them is held while training, so that few train at once


def main(arguments: list[str]) -> int:
    """Run a request; returns the exit code."""
    # The pipe to the parent is kept apart, so that no library can write into it.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

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
        emit("result", **perform(request, emit))
        return 0
    except BrokenPipeError:  # nobody listens: the parent was killed
        if request is not None:
            _clean(request.control.parent)
    except ForgeError as error:
        emit("error", **error.as_dict())
    except OSError as error:
        traceback.print_exc()
        emit("error", **from_os_error(error, "write the run").as_dict())
    except Exception as error:
        traceback.print_exc()
        emit("error", **_in_words(error).as_dict())
    return 1


def perform(request: ChildRequest, emit: Any) -> dict[str, Any]:
    """Load, attach adapters, train, save. Returns `Trained` as a dict.

    Raises:
        ForgeError: see trainer.py, adapters.py, batching.py.
    """
    from forge_mcp.training.adapters import adapter_weights, attach_adapters
    from forge_mcp.training.bases import load_base, resolve_base
    from forge_mcp.training.batching import check_not_empty, read_rows, sample, tokenise
    from forge_mcp.training.run import ADAPTERS, CONFIG, describe_run, save_frozen
    from forge_mcp.training.trainer import FineTuneTrainer

    def check() -> None:
        if request.control.exists():
            raise Cancelled("Training was stopped.", cause="somebody asked for it")

    def tell(message: str) -> None:
        emit("log", level="info", message=message)

    # Both are held until this process ends, however it ends. A child whose parent was killed may
    # live for a moment longer: two must not write into one run.
    FileLock(request.run / LOG).wait(
        check, lambda: tell("The former training of this run has not ended yet; waiting for it.")
    )
    if request.slots:
        wait_for_one(
            [FileLock(path) for path in request.slots],
            check,
            lambda: tell("Another training is under way; this one waits for it."),
        )
    settings = request.settings
    mx = machine.mlx()
    mx.random.seed(settings.seed)
    base = resolve_base(request.base)
    base = replace(base, name=request.base_name or base.name)
    emit("progress", done=0, total=None, message=f"loading {base.name}")
    loaded = load_base(base)

    rows = list(read_rows(request.train))
    train = tokenise(rows, loaded.tokenizer, settings.max_seq_length)
    held_out = sample(list(read_rows(request.valid)), settings.valid_examples, settings.seed)
    valid = tokenise(held_out, loaded.tokenizer, settings.max_seq_length)
    check_not_empty(train, settings.max_seq_length)
    for name, one in (("training", train), ("validation", valid)):
        if one.too_long:
            emit(
                "log",
                level="warning",
                message=f"{one.too_long} {name} examples are longer than "
                f"{settings.max_seq_length} tokens and are left out.",
            )

    check()
    emit("progress", done=0, total=None, message=f"splitting weights ({settings.init_method})")
    adapters = attach_adapters(loaded.model, settings, loaded.dtype)
    for notice in adapters.notices:
        emit("log", level="warning", message=notice)
    first = rows[0].messages[0]
    system_prompt = first.content if first.role == "system" else ""
    config = describe_run(loaded, settings, adapters.frozen, system_prompt)
    (request.run / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_frozen(request.run, adapters.frozen, adapters.initial)
    del adapters

    trainer = FineTuneTrainer(loaded.model, settings, request.run, emit, check)
    trained = trainer.train(train.examples, valid.examples, resume=request.resume)
    mx.save_safetensors(str(request.run / ADAPTERS), adapter_weights(loaded.model))
    return asdict(trained)


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


def _in_words(error: Exception) -> ForgeError:
    text = str(error).strip() or type(error).__name__
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
