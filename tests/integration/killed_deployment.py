"""Exports, deployments and rollbacks that are killed -9, run out of space, or meet each other.

    python killed_deployment.py HOME SEED kill|full|together COUNT [OLLAMA]

HOME is a workspace of serving_house with two deployments. The libraries are imported once; each
attempt is a process of its own, forked before anything was computed.

kill: COUNT attempts are killed
    - at a file-system operation in HOME (the 1st, 2nd, … file that is opened for writing, folder
      that is made, name that is given or removed; every other time the one that gives an
      artifact its name, or the next one after that), by an audit hook,
    - at a statement of the registry, by SQLite's own trace,
    - or after a time.
    Where is drawn from what an attempt that was left alone has counted before.
full: for COUNT attempts the disk is full from such a file-system operation on.
together: COUNT processes do one thing after the other at the same time, and one asks all the while.

After every attempt another process looks at what is left. Prints one JSON object a line: what was
attempted, and what was found. With the address of an Ollama, deployments go there.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf  # noqa: F401 -- imported once, here, for all attempts
import xllamacpp  # noqa: F401

from forge_mcp import machine

machine.mlx()
import mlx_lm.models.llama  # noqa: E402
import mlx_lm.tokenizer_utils  # noqa: E402
import mlx_lm.utils  # noqa: E402, F401
import transformers  # noqa: E402

from forge_mcp.exporting import fuse, parity, reference, report  # noqa: E402, F401
from forge_mcp.exporting import gguf as writer  # noqa: E402, F401
from forge_mcp.judging import answers, evaluator, heldout  # noqa: E402, F401
from forge_mcp.pipeline.deploy import DeployRequest, deploy  # noqa: E402
from forge_mcp.pipeline.export import ExportRequest, export  # noqa: E402
from forge_mcp.pipeline.faults import in_words  # noqa: E402
from forge_mcp.pipeline.models import (  # noqa: E402
    ActivateRequest,
    RollbackRequest,
    activate,
    rollback,
)
from forge_mcp.pipeline.query import QueryRequest, query  # noqa: E402
from forge_mcp.pipeline.skill import SkillContext  # noqa: E402
from forge_mcp.serving import bundle, llamacpp, registry  # noqa: E402, F401
from forge_mcp.serving.ollama import list_ollama_models  # noqa: E402
from forge_mcp.settings import load_settings  # noqa: E402
from forge_mcp.training import run  # noqa: E402, F401
from forge_mcp.workspace import FOLDERS, Workspace  # noqa: E402

transformers.PreTrainedTokenizerFast  # noqa: B018 -- imported lazily
PROJECT = "demo"
MOMENTS = ("files", "statements", "time")
CHANGING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
GROWING = {"open", "os.mkdir", "os.link"}
TURNS = 4
OLLAMA = "".join(sys.argv[5:])
WHERE = {"target": "ollama", "ollama_host": OLLAMA} if OLLAMA else {}
NEVER = 10**9


def main(home: Path, seed: int, mode: str, count: int) -> None:
    """See above."""
    if mode == "together":
        together(home, seed, count)
        return
    operations = [one for one in OPERATIONS if not (OLLAMA and one == "export")]
    dice = random.Random(seed)
    numbers = itertools.count(seed)
    whole = {operation: attempt(home, operation, next(numbers), {}) for operation in operations}
    tell(whole=whole)
    if OLLAMA:  # after the creation, before the end
        found = attempt(home, "deploy", next(numbers), {"statement": "DELETE FROM half_made"})
        tell(operation="deploy", moment="half made", at=0, found=found, left=look(home))
    moments = MOMENTS if mode == "kill" else ("full",)
    chosen = operations if mode == "kill" else ["export", "deploy"]
    done = 0
    while done < count:
        operation, moment = dice.choice(chosen), moments[done % len(moments)]
        most = whole[operation]["files" if moment == "full" else moment]
        if not most:  # an export writes nothing into the registry
            continue
        at = dice.uniform(0, most) if moment == "time" else dice.randint(1, int(most))
        if moment == "files" and done % 2:
            operation = dice.choice([one for one in operations if whole[one]["names"]])
            at = dice.choice(whole[operation]["names"]) + dice.randint(0, 1)
        found = attempt(home, operation, next(numbers), {moment: at})
        done += found is None or mode == "full"
        tell(operation=operation, moment=moment, at=at, found=found, left=look(home))
    tell(last=attempt(home, "deploy", next(numbers), {}), left=look(home))


def together(home: Path, seed: int, count: int) -> None:
    """Several processes change the active model while another one asks it."""
    stop, stopping = os.pipe()

    def change(number: int) -> list[Any]:
        dice, rows = random.Random(seed + number), []
        for turn in range(TURNS):
            # Pairs deploy the same, at the same time.
            context = context_of(home, seed + (number // 2) * TURNS + turn)
            operation = "deploy" if turn == 0 else dice.choice(("deploy", "rollback", "activate"))
            rows.append([operation, attempted(operation, context)])
        return rows

    def ask() -> int:
        asked, context = 0, context_of(home, 0)
        while not select.select([stop], [], [], 0)[0]:
            answer = query(QueryRequest(text="Which parameters does `zip_all` take?"), context)
            if answer.answer != "`rows`":
                raise AssertionError(answer.answer)
            asked += 1
        return asked

    asking = begin(ask)
    changing = [begin(partial(change, number)) for number in range(count)]
    rows = [end(one) for one in changing]
    os.write(stopping, b"x")
    tell(changes=rows, asked=end(asking), left=look(home))


def tell(**row: Any) -> None:
    print(json.dumps(row), flush=True)


# -- an attempt ------------------------------------------------------------------------------------


def attempt(home: Path, operation: str, number: int, moment: dict[str, Any]) -> Any:
    """What it returned or raised, and counted; None where it was killed."""

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        counted: dict[str, Any] = {"files": 0, "statements": 0, "names": []}
        context = context_of(home, number)
        hook(context.workspace, counted, moment)
        if "time" in moment:
            threading.Timer(moment["time"], os.kill, (os.getpid(), signal.SIGKILL)).start()
        done = attempted(operation, context)
        return {"done": done, **counted, "time": time.perf_counter() - started}

    return end(begin(work))


def attempted(operation: str, context: SkillContext) -> Any:
    """What it returned, or the error's fields as a face shows them."""
    try:
        return OPERATIONS[operation](context)
    except Exception as fault:
        return in_words(fault, "it", context.workspace.home).as_dict()


def hook(workspace: Workspace, counted: dict[str, Any], moment: dict[str, Any]) -> None:
    """Count what changes the workspace; at the given moment die, or have no more space."""
    inside = str(workspace.home)

    def count(kind: str) -> None:
        counted[kind] += 1
        if counted[kind] == moment.get(kind, NEVER):
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in CHANGING:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | Path) and str(path).startswith(inside):
            count("files")
            if event == "os.rename" and Path(arguments[1]).parent.name in FOLDERS.values():
                counted["names"].append(counted["files"])
            if event in GROWING and counted["files"] >= moment.get("full", NEVER):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def traced(statement: str) -> None:
        count("statements")
        if statement.startswith(moment.get("statement", "never")):
            os.kill(os.getpid(), signal.SIGKILL)

    workspace.database.set_trace_callback(traced)
    sys.addaudithook(audited)


def begin(work: Callable[[], Any]) -> tuple[int, int]:
    """A process that does it: its id, and where it writes what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    try:
        row = work()
    except BaseException:
        row = {"error": traceback.format_exc()}
    with os.fdopen(writing, "w") as pipe:
        json.dump(row, pipe)
    os._exit(0)


def end(begun: tuple[int, int]) -> Any:
    """What it returned; None where it was killed."""
    child, reading = begun
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else json.loads(text)


def context_of(home: Path, number: int) -> SkillContext:
    """The project's; another seed makes everything after the run anew."""
    settings = load_settings(
        None,
        {
            "exporting": {"quantization": "f16"},
            "judging": {"seed": number},
            "serving": {"num_ctx": 512, "num_predict": 64, "threads": 1, **WHERE},
        },
    )
    return SkillContext(Workspace(home), settings, PROJECT)


def a_run(context: SkillContext) -> str:
    """One of the runs, by the seed."""
    runs = sorted(one.id for one in context.workspace.artifacts("run", PROJECT))
    return runs[context.settings.judging.seed % len(runs)]


def do_export(context: SkillContext) -> str:
    return export(ExportRequest(run=a_run(context)), context).export_id


def do_deploy(context: SkillContext) -> str:
    return deploy(DeployRequest(run_or_export=a_run(context)), context).model


def do_rollback(context: SkillContext) -> str:
    return str(rollback(RollbackRequest(), context).active)


def do_activate(context: SkillContext) -> str:
    oldest = registry.deployments(context.workspace, PROJECT)[-1]
    return str(activate(ActivateRequest(model=oldest.model), context).active)


OPERATIONS: dict[str, Callable[[SkillContext], str]] = {
    "export": do_export,
    "deploy": do_deploy,
    "rollback": do_rollback,
    "activate": do_activate,
}


# -- what is left ----------------------------------------------------------------------------------


def look(home: Path) -> dict[str, Any]:
    """Ask the active model, and look at every artifact and at the registry."""

    def work() -> dict[str, Any]:
        context = context_of(home, 0)
        workspace = context.workspace
        answer = query(QueryRequest(text="Which parameters does `zip_all` take?"), context)
        damaged = []
        for kind in FOLDERS:
            damaged += list(workspace.damaged(kind))
            for artifact in workspace.artifacts(kind):
                try:
                    artifact.verify()
                except Exception as error:
                    damaged.append(f"{artifact.id}: {error}")
        standing = registry.standing(workspace, PROJECT)
        return {
            "answer": answer.answer,
            "model": answer.model,
            "active": standing.active.model if standing.active else None,
            "previous": standing.previous.model if standing.previous else None,
            "history": [
                [one.from_, one.to] for one in reversed(registry.history(workspace, PROJECT))
            ],
            "in_ollama": sorted(in_ollama()),
            "deployed": sorted(d.model for d in registry.deployments(workspace, PROJECT)),
            "half_made": [one.model for one in registry.half_made(workspace, PROJECT)],
            "damaged": damaged,
            "staging": swept(workspace),
        }

    found: dict[str, Any] = end(begin(work))
    return found


def in_ollama() -> list[str]:
    names = list_ollama_models(OLLAMA) if OLLAMA else []
    return [name.removesuffix(":latest") for name in names]


def swept(workspace: Workspace) -> list[str]:
    """What the next writer leaves of what a killed one had begun, a minute later."""
    staging = workspace.home / "staging"
    long_ago = time.time() - 3600
    for path in staging.iterdir():
        os.utime(path, (long_ago, long_ago))
    with workspace.stage("report", PROJECT):
        pass
    return sorted(path.name for path in staging.iterdir())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
