"""The skill `gc`: what is needed stays with all it was made from, and the rest goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_mcp.errors import Cancelled, InvalidSettings, NotFound
from forge_mcp.locks import FileLock
from forge_mcp.pipeline import gc as gc_module
from forge_mcp.pipeline.context import ALL_PROJECTS, open_context
from forge_mcp.pipeline.gc import GcRequest, GcResult, gc
from forge_mcp.pipeline.skill import SkillContext, skills
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.jobs import JobProgress, JobSpec
from forge_mcp.schemas.manifests import ArtifactKind, Manifest
from forge_mcp.serving import registry
from forge_mcp.settings import load_settings
from forge_mcp.workspace import FOLDERS, PREFIXES, Workspace

NOW = time.time()
DAY = 24 * 3600.0
LINE: tuple[ArtifactKind, ...] = ("corpus", "dataset", "run", "report", "export", "deployment")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "forge")


def put(
    workspace: Workspace,
    kind: ArtifactKind,
    name: str,
    *parents: str,
    days: float = 30.0,
    project: str = "p",
    **fields: Any,
) -> str:
    """An artifact as `Staged.commit` leaves it, of any age; returns its id."""
    made = f"{PREFIXES[kind]}-{project}-{name}"
    manifest = Manifest(
        kind=kind,
        id=made,
        project=project,
        parents=list(parents),
        inputs_hash="0" * 64,
        created=datetime.fromtimestamp(NOW - days * DAY, UTC).isoformat(timespec="seconds"),
        checksums={},
        **fields,
    )
    folder = workspace.folder(kind) / made
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "data").write_bytes(b"x" * 1000)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return made


def put_line(workspace: Workspace, name: str, project: str = "p", days: float = 30.0) -> list[str]:
    """All that one deployment was made from, and the deployment, which becomes the active one."""

    def one(kind: ArtifactKind, *parents: str, suffix: str = "") -> str:
        return put(workspace, kind, name + suffix, *parents, days=days, project=project)

    corpus = one("corpus")
    source = one("dataset", corpus, suffix="a")
    dataset = one("dataset", source, suffix="b")
    run = one("run", dataset)
    report = one("report", run, dataset)
    export = one("export", run)
    deployment = one("deployment", export, report)
    deploy(workspace, deployment, run, export, project)
    return [corpus, source, dataset, run, report, export, deployment]


def deploy(workspace: Workspace, name: str, run: str, export: str, project: str = "p") -> None:
    model = name.removeprefix("deploy-")
    registry.register(
        workspace,
        id=name,
        project=project,
        model=model,
        target="llamacpp",
        run=run,
        export=export,
    )


def clean(
    workspace: Workspace, project: str = ALL_PROJECTS, events: Any = None, **fields: Any
) -> GcResult:
    """gc as strict as it can be, unless `fields` say otherwise."""
    request = GcRequest.model_validate(
        {"apply": True, "keep_newest": 0, "older_than_days": 0} | fields
    )
    sink = events or (lambda event: None)
    return gc(request, SkillContext(workspace, load_settings(), project, sink=sink, stage="gc"))


def there(workspace: Workspace) -> set[str]:
    return {path.name for kind in FOLDERS for path in workspace.folder(kind).iterdir()}


def gone(result: GcResult) -> list[str]:
    return [one.id for one in result.removed]


def rows(workspace: Workspace, project: str = "p") -> list[str]:
    return [one.id for one in registry.deployments(workspace, project)]


def assert_no_orphans(workspace: Workspace, before: set[str]) -> None:
    left = there(workspace)
    for kind in FOLDERS:
        for artifact in workspace.artifacts(kind):
            assert set(artifact.manifest.parents) & before <= left, artifact.id


# -- any graph -------------------------------------------------------------------------------------


@dataclass
class Node:
    kind: ArtifactKind
    project: str
    days: int
    parents: list[int]  # places of earlier nodes; -1: one that is gone
    id: str = ""


@dataclass
class Case:
    nodes: list[Node]
    deployed: list[int]  # places of deployments, in the order in which they became active
    read_by_jobs: list[int]
    keep_newest: int
    days: int
    scope: str
    before: set[str] = field(default_factory=set)

    def ids(self, places: list[int]) -> list[str]:
        return [self.nodes[at].id if at >= 0 else "corpus-p-gone" for at in places]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    nodes: list[Node] = []
    for place in range(draw(st.integers(1, 14))):
        earlier = st.integers(-1, place - 1)
        nodes.append(
            Node(
                draw(st.sampled_from(LINE)),
                draw(st.sampled_from(("p", "q"))),
                draw(st.integers(0, 6)),
                draw(st.lists(earlier, max_size=3, unique=True)),
            )
        )
    deployments = [at for at, node in enumerate(nodes) if node.kind == "deployment"]
    places = st.integers(0, len(nodes) - 1)
    return Case(
        nodes,
        draw(st.lists(st.sampled_from(deployments), max_size=6)) if deployments else [],
        draw(st.lists(places, max_size=2)),
        draw(st.integers(0, 2)),
        draw(st.integers(0, 7)),
        draw(st.sampled_from((ALL_PROJECTS, "p", "q"))),
    )


def build(case: Case, workspace: Workspace) -> dict[str, list[str]]:
    """Writes the case down; returns what each project has deployed, in this order."""
    for at, node in enumerate(case.nodes):
        parents = case.ids(node.parents)
        made = put(
            workspace, node.kind, f"{at:04}", *parents, days=node.days + 0.5, project=node.project
        )
        node.id = made
    active: dict[str, list[str]] = {"p": [], "q": []}
    for at in case.deployed:
        node = case.nodes[at]
        if node.id not in rows(workspace, node.project):
            deploy(workspace, node.id, "run-p-gone", "export-p-gone", node.project)
        else:
            model = node.id.removeprefix("deploy-")
            registry.set_active_model(workspace, node.project, model)
        active[node.project].append(node.id)
    for number, at in enumerate(case.read_by_jobs):
        put_job(workspace, f"job-{number}", JobProgress(artifacts=[case.nodes[at].id]))
    case.before = there(workspace)
    return active


def expected(case: Case, active: dict[str, list[str]]) -> set[str]:
    """What must stay, reckoned from each artifact downwards to what was made from it."""
    children: dict[str, list[str]] = {node.id: [] for node in case.nodes}
    for node in case.nodes:
        for parent in case.ids(node.parents):
            children.setdefault(parent, []).append(node.id)
    ages: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for at, node in enumerate(case.nodes):
        ages.setdefault((node.kind, node.project), []).append((node.days, f"{9999 - at}"))
    read = set(case.ids(case.read_by_jobs))

    def in_use(node: Node) -> bool:
        states: list[str] = []
        for name in active[node.project]:
            if not states or states[-1] != name:
                states.append(name)
        return node.id in states[-2:]

    @cache
    def stays(at: int) -> bool:
        node = case.nodes[at]
        newest = sorted(ages[node.kind, node.project])[: case.keep_newest]
        return (
            node.id in read
            or in_use(node)
            or node.days + 0.5 < case.days
            or (node.days, f"{9999 - at}") in newest
            or case.scope not in (ALL_PROJECTS, node.project)
            or any(stays(int(child[-4:])) for child in children[node.id])
        )

    def is_report_on_what_stays(node: Node) -> bool:
        on = node.parents
        return node.kind == "report" and bool(on) and all(at >= 0 and stays(at) for at in on)

    return {
        node.id for at, node in enumerate(case.nodes) if stays(at) or is_report_on_what_stays(node)
    }


@settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_of_any_graph_exactly_what_is_not_needed_goes(case: Case, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "forge", ignore_errors=True)
    workspace = Workspace(tmp_path / "forge")
    active = build(case, workspace)
    keep = expected(case, active)
    asked = {"keep_newest": case.keep_newest, "older_than_days": case.days}

    dry = clean(workspace, case.scope, apply=False, **asked)
    assert there(workspace) == case.before
    done = clean(workspace, case.scope, **asked)

    assert there(workspace) == keep
    assert_no_orphans(workspace, case.before)
    assert gone(dry) == gone(done)
    assert set(gone(done)) == case.before - keep
    place = {name: at for at, name in enumerate(gone(done))}
    for node in case.nodes:
        for parent in case.ids(node.parents):
            assert place.get(node.id, -1) < place.get(parent, len(place)), "children go first"
    for project, names in active.items():
        assert set(rows(workspace, project)) == set(names) & keep
        standing = registry.standing(workspace, project)
        assert (standing.active.id if standing.active else None) == (names[-1] if names else None)
    assert sum(done.kept.values()) == sum(
        case.scope in (ALL_PROJECTS, node.project) for node in case.nodes if node.id in keep
    )
    assert clean(workspace, case.scope, **asked).removed == []


# -- deployments -----------------------------------------------------------------------------------


def test_active_and_previous_keep_all_that_they_need_and_older_ones_go(
    workspace: Workspace,
) -> None:
    first, second, third = (put_line(workspace, name) for name in ("1", "2", "3"))
    other = put_line(workspace, "1", project="q")
    second_report = put(workspace, "report", "2x", second[3], second[2])
    spare_run = put(workspace, "run", "spare", third[2])
    its_report = put(workspace, "report", "spare", spare_run, third[2])

    dry = clean(workspace, apply=False)
    assert not dry.applied
    assert set(gone(dry)) == {*first, spare_run, its_report}
    assert rows(workspace) == [third[-1], second[-1], first[-1]]
    assert set(first) <= there(workspace)

    done = clean(workspace)
    assert done.applied
    assert there(workspace) == {*second, second_report, *third, *other}
    assert rows(workspace) == [third[-1], second[-1]]
    assert done.kept == {
        "corpus": 3, "dataset": 6, "run": 3, "report": 4, "export": 3, "deployment": 3,
    }  # fmt: skip
    assert done.freed_bytes == sum(one.bytes for one in done.removed) == dry.freed_bytes
    assert all(one.bytes > 1000 and one.project == "p" for one in done.removed)
    assert registry.rollback(workspace, "p").active == registry.find_deployment(
        workspace, "p", second[-1]
    )
    with pytest.raises(NotFound):
        registry.find_deployment(workspace, "p", first[-1])
    assert list((workspace.home / "staging").iterdir()) == []


def test_a_model_that_is_activated_meanwhile_stays(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (put_line(workspace, name) for name in ("1", "2", "3"))
    real = gc_module._undeploy

    def late(*arguments: Any) -> set[str]:
        registry.set_active_model(Workspace(workspace.home), "p", first[-1])
        return real(*arguments)

    monkeypatch.setattr(gc_module, "_undeploy", late)
    assert clean(workspace).removed == []
    assert set(first) <= there(workspace)
    assert rows(workspace) == [third[-1], second[-1], first[-1]]


def test_the_newest_and_the_young_stay(workspace: Workspace) -> None:
    corpora = [put(workspace, "corpus", str(days), days=days) for days in (9, 8, 0.5)]
    run = put(workspace, "run", "new", put(workspace, "dataset", "old", corpora[0]), days=0.1)
    assert set(gone(clean(workspace, apply=False, older_than_days=1))) == {corpora[1]}
    assert set(gone(clean(workspace, apply=False, keep_newest=2))) == set()
    assert gone(clean(workspace, apply=False, keep_newest=1)) == [corpora[1]]
    assert gone(clean(workspace, keep_newest=1, older_than_days=8.5)) == []
    assert run in there(workspace)


def test_an_artifact_without_a_date_stays(workspace: Workspace) -> None:
    made = put(workspace, "corpus", "1")
    path = workspace.folder("corpus") / made / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": "long ago"}))
    assert clean(workspace).removed == []


def test_only_the_named_project_is_touched(workspace: Workspace) -> None:
    mine, theirs = put(workspace, "run", "1"), put(workspace, "run", "1", project="q")
    shared = put(workspace, "corpus", "1")
    child = put(workspace, "dataset", "1", shared, project="q")
    assert gone(clean(workspace, "p")) == [mine]
    assert there(workspace) == {theirs, shared, child}
    assert set(gone(clean(workspace))) == {theirs, shared, child}


# -- jobs and unfinished work ----------------------------------------------------------------------


def put_job(
    workspace: Workspace,
    name: str,
    progress: JobProgress | str | None,
    request: dict[str, Any] | None = None,
    project: str = "p",
) -> None:
    folder = workspace.home / "jobs" / name
    folder.mkdir(parents=True)
    spec = JobSpec(skill="train", request=request or {}, project=project)
    (folder / "spec.json").write_text(spec.model_dump_json(indent=2))
    if progress is not None:
        text = progress if isinstance(progress, str) else progress.model_dump_json()
        (folder / "progress.json").write_text(text)


@pytest.mark.parametrize("progress", [None, JobProgress(), "{", JobProgress(stage="train")])
def test_what_a_queued_or_running_job_was_asked_for_stays(
    workspace: Workspace, progress: JobProgress | str | None
) -> None:
    line = put_line(workspace, "1")
    put_line(workspace, "2")
    put_line(workspace, "3")
    runs = [put(workspace, "run", name) for name in ("a", "b", "c")]
    request = {
        "run": runs[0],
        "others": [{"path": f"{workspace.folder('run')}/{runs[1]}"}],
        "model": line[-1].removeprefix("deploy-"),
    }
    put_job(workspace, "job-1", progress, request)
    assert gone(clean(workspace)) == [runs[2]]


def test_what_an_ended_job_has_read_goes(workspace: Workspace) -> None:
    asked, made = put(workspace, "run", "1"), put(workspace, "report", "1")
    ended = JobProgress(state="ended", artifacts=[made])
    put_job(workspace, "job-1", ended, {"run": asked})
    assert set(gone(clean(workspace))) == {asked, made}


def put_unfinished(workspace: Workspace, name: str, days: float, reads: str = "") -> Path:
    folder = workspace.home / "unfinished" / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-1").write_bytes(b"x" * 500)
    if reads:
        (folder / ".train-1").mkdir()
        request = {"train": f"{workspace.folder('dataset')}/{reads}/train.jsonl"}
        (folder / ".train-1" / "request.json").write_text(json.dumps(request))
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return folder


def test_old_unfinished_runs_go_unless_somebody_has_them(workspace: Workspace) -> None:
    datasets = [put(workspace, "dataset", str(number)) for number in range(3)]
    old = put_unfinished(workspace, "run-p-1111111111111111", 9, datasets[0])
    young = put_unfinished(workspace, "run-p-2222222222222222", 1, datasets[1])
    held = put_unfinished(workspace, "run-p-3333333333333333", 9, datasets[2])
    of_job = put_unfinished(workspace, "run-my-app-4444444444444444", 9)
    put_job(workspace, "job-1", JobProgress(), project="My App")
    with FileLock(held) as lock:
        assert lock.acquire()
        assert gone(clean(workspace, "q", older_than_days=2)) == []
        result = clean(workspace, older_than_days=2)
    assert set(gone(result)) == {old.name, datasets[0]}
    entry = next(one for one in result.removed if one.kind == "unfinished")
    assert (entry.project, entry.bytes > 500) == ("p", True)
    assert [path.exists() for path in (old, young, held, of_job)] == [False, True, True, True]
    assert set(gone(clean(workspace, older_than_days=2))) == {held.name, datasets[2]}


def test_a_job_whose_request_cannot_be_read_keeps_every_unfinished_run(
    workspace: Workspace,
) -> None:
    put_unfinished(workspace, "run-p-1111111111111111", 9)
    put_job(workspace, "job-1", JobProgress())
    spec = workspace.home / "jobs" / "job-1" / "spec.json"
    spec.write_text("{")
    assert clean(workspace).removed == []
    shutil.rmtree(spec.parent)
    assert len(clean(workspace).removed) == 1


def test_a_run_that_somebody_goes_on_with_at_that_moment_stays(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_unfinished(workspace, "run-p-1111111111111111", 9)
    monkeypatch.setattr(gc_module, "is_held", lambda path: False)  # as it was a moment ago
    with FileLock(folder) as lock:
        assert lock.acquire()
        assert clean(workspace).removed == []
    assert (folder / "checkpoints" / "step-1").exists()
    assert gone(clean(workspace)) == [folder.name]


def test_what_killed_writers_left_goes_and_living_ones_are_left_alone(
    workspace: Workspace,
) -> None:
    staging = workspace.home / "staging"
    dead, living, fresh = (staging / name for name in ("run-dead", "run-living", "run-fresh"))
    for folder in (dead, living, fresh):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x" * 700)
    for folder in (dead, living):
        os.utime(folder, (NOW - 3600, NOW - 3600))
    with FileLock(living) as lock:
        assert lock.acquire()
        assert gone(clean(workspace, "p")) == [], "it is not known whose they are"
        result = clean(workspace)
    assert [(one.id, one.kind, one.bytes) for one in result.removed] == [
        ("run-dead", "staging", 700)
    ]
    assert sorted(staging.iterdir()) == [fresh, living]


@pytest.mark.parametrize("kind", ["mining", "retrieval"])
def test_caches_that_are_long_not_used_go(workspace: Workspace, kind: str) -> None:
    caches = workspace.home / "cache" / kind
    old, living, recent = (caches / name for name in ("old", "living", "recent"))
    for folder, days in ((old, 40), (living, 40), (recent, 20)):
        folder.mkdir(parents=True)
        (folder / "mining.db").write_bytes(b"x" * 700)
        for path in (folder / "mining.db", folder):
            os.utime(path, (NOW - days * 86400, NOW - days * 86400))
    with FileLock(living, folder=True) as lock:
        assert lock.acquire()
        assert gone(clean(workspace, "p")) == [], "a cache belongs to no project"
        result = clean(workspace)
    assert [(one.id, one.kind, one.bytes) for one in result.removed] == [("old", "cache", 700)]
    assert sorted(caches.iterdir()) == [living, recent]


@pytest.mark.parametrize(("days", "left"), [(40, False), (20, True)])
def test_what_teachers_answered_goes_when_none_was_asked_for_long(
    workspace: Workspace, days: int, left: bool
) -> None:
    answers = workspace.home / "cache" / "teacher"
    answers.mkdir(parents=True)
    (answers / "a.json").write_text("{}")
    for path in (answers / "a.json", answers):
        os.utime(path, (NOW - days * 86400, NOW - days * 86400))
    clean(workspace)
    assert answers.exists() == left


# -- damage, kills, crowds -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "newer"])
def test_damaged_artifacts_are_told_and_kept_with_what_they_name(
    workspace: Workspace, damage: str
) -> None:
    corpus, spare = put(workspace, "corpus", "1"), put(workspace, "corpus", "2")
    dataset = put(workspace, "dataset", "1", corpus)
    manifest = workspace.folder("dataset") / dataset / "manifest.json"
    text = manifest.read_text()
    if damage == "cut":
        manifest.write_text(text[: text.index(corpus) + len(corpus) + 1])
    else:
        manifest.write_text(text.replace('"schema_version":1', '"schema_version":99'))
    result = clean(workspace)
    assert result.damaged == [dataset]
    assert gone(result) == [spare]
    assert there(workspace) == {corpus, dataset}


def test_a_copy_made_by_hand_is_no_artifact_of_ours(workspace: Workspace) -> None:
    made = put(workspace, "run", "1")
    folder = workspace.folder("run")
    shutil.copytree(folder / made, folder / f"{made}-copy")
    result = clean(workspace)
    assert (gone(result), result.damaged) == ([], [f"{made}-copy"])
    assert there(workspace) == {made, f"{made}-copy"}


KILLED = """
import os, signal, sys
from pathlib import Path
from forge_mcp.pipeline import gc as module
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "before the first rename":
    module._take = die
else:
    module.fsync_path = die
request = module.GcRequest(apply=True, keep_newest=0, older_than_days=0)
module.gc(request, SkillContext(Workspace(Path(sys.argv[1])), load_settings(), ""))
"""


def test_killed_after_every_rename_it_leaves_no_orphan_and_comes_to_its_end(
    workspace: Workspace,
) -> None:
    first, *kept = (put_line(workspace, name) for name in ("1", "2", "3"))
    before = there(workspace)

    def killed(when: str) -> bool:
        command = [sys.executable, "-c", KILLED, str(workspace.home), when]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode in (0, -9), done.stderr
        return done.returncode == -9

    assert killed("before the first rename")
    assert there(workspace) == before
    assert rows(workspace) == [kept[1][-1], kept[0][-1]]
    for left in range(len(first) - 1, -1, -1):
        assert killed("after a rename")
        assert len(there(workspace) & set(first)) == left
        assert_no_orphans(workspace, before)
    assert there(workspace) == set(kept[0] + kept[1])

    assert not killed("after a rename"), "there is nothing left to rename"
    trash = list((workspace.home / "staging").iterdir())
    assert len(trash) == len(first) + 1
    for folder in trash:
        os.utime(folder, (NOW - 3600, NOW - 3600))
    assert {one.kind for one in clean(workspace).removed} == {"staging"}
    assert list((workspace.home / "staging").iterdir()) == []


def test_a_second_gc_waits_for_the_first(workspace: Workspace) -> None:
    made = put(workspace, "run", "1")
    told = threading.Event()

    def sink(event: Event) -> None:
        if "Another gc" in str(event.payload.get("message")):
            told.set()

    with FileLock(workspace.home / "locks" / "gc") as first, ThreadPoolExecutor(1) as pool:
        assert first.acquire()
        second = pool.submit(clean, Workspace(workspace.home), ALL_PROJECTS, sink)
        assert told.wait(30)
        assert clean(workspace, apply=False).removed, "looking needs no turn"
        assert there(workspace) == {made}
        first.release()
        assert gone(second.result(30)) == [made]


def test_several_at_once_remove_everything_exactly_once(workspace: Workspace) -> None:
    names = [name for number in range(12) for name in put_line(workspace, f"{number:02}")]
    doomed = names[: 10 * 7]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: clean(Workspace(workspace.home)), range(4)))
    assert sorted(name for result in results for name in gone(result)) == sorted(doomed)
    assert there(workspace) == set(names) - set(doomed)
    assert len(rows(workspace)) == 2


def test_stopped_on_the_way_it_says_how_far_it_came(workspace: Workspace) -> None:
    for number in range(3):
        put(workspace, "run", str(number))

    def stop_at_second(event: Event) -> None:
        if event.kind == "progress" and event.payload["done"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(Cancelled, match="1 of 3 were removed"):
        clean(workspace, events=stop_at_second)
    assert len(there(workspace)) == 2
    assert list((workspace.home / "staging").iterdir()) == []
    assert len(clean(workspace).removed) == 2


# -- whose artifacts -------------------------------------------------------------------------------


def test_without_a_name_it_means_every_project_wherever_one_stands(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "web"
    repository.mkdir()
    (repository / "forge.toml").write_text('[project]\nname = "api"\n')
    monkeypatch.chdir(repository)
    events: list[Event] = []
    _, context = open_context(skills()["gc"], GcRequest(), workspace=workspace, sink=events.append)
    assert (context.project, context.repository, events) == (ALL_PROJECTS, None, [])
    _, context = open_context(skills()["gc"], GcRequest(), workspace=workspace, project=".")
    assert context.project == "api"
    assert workspace.database.execute("SELECT * FROM projects").fetchall() == []


def test_a_project_whose_settings_are_broken_is_not_taken_for_another(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "forge.toml").write_text('[project]\nname = "api"\nnonsense = 1\n')
    with pytest.raises(InvalidSettings):
        open_context(
            skills()["gc"], GcRequest(), workspace=workspace, project=str(tmp_path / "web")
        )
