"""`pull` against a Hub of our own: what it fetches, resumes, verifies, and how it says no."""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from training_models import make_base

from forge_mcp.errors import (
    BadInput,
    Cancelled,
    CorruptArtifact,
    ForgeError,
    NotFound,
    OutOfSpace,
    Unavailable,
    UnsupportedModel,
    from_dict,
)
from forge_mcp.pipeline.pull import PullRequest, PullResult, pull
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.training import hub as hub_module
from forge_mcp.training import hub_child
from forge_mcp.training.bases import load_base, resolve_base
from forge_mcp.training.hub import HubRequest, download, list_repository
from forge_mcp.workspace import Workspace

REPO = "someone/tiny"
KNOWN = "mlx-community/Qwen3-0.6B-4bit"
UNNEEDED = (
    "README.md",
    ".gitattributes",
    "pytorch_model.bin",
    "consolidated.safetensors",
    "model-q4_k_m.gguf",
    "modeling_tiny.py",
    "onnx/model.onnx",
    "original/model.safetensors",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as they are: with copies of the weights that nobody here needs."""
    folder = make_base(tmp_path_factory.mktemp("hub") / "tiny")
    (folder / "LICENSE").write_text("Free.")
    for name in UNNEEDED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 50_000)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local cache of this process and of those it starts."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # no token of the user's
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture
def server(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({REPO: source, KNOWN: source}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest.fixture
def inside(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The same without a process of its own, which takes a second to start each time."""
    point_at(server.address, monkeypatch)
    return server


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")

    def run(request: HubRequest, check: Callable[[], None]) -> Generator[Any, None, None]:
        events: list[tuple[str, dict[str, Any]]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                hub_child, "_emit", lambda kind, **payload: events.append((kind, payload))
            )
            assert hub_child.perform(request) == (events[-1][0] == "error")
        for kind, payload in events:
            check()
            if kind == "error":
                raise from_dict(payload)
            yield kind, json.loads(json.dumps(payload))

    monkeypatch.setattr(hub_module, "_run", run)


class Told:
    """A context that remembers what was told."""

    def __init__(self, home: Path) -> None:
        self.events: list[Event] = []
        self.context = SkillContext(
            Workspace(home), load_settings(), "tiny", sink=self.events.append, stage="pull"
        )

    @property
    def text(self) -> str:
        return " ".join(e.payload["message"] for e in self.events if e.kind == "log")

    def pull(self, base: str, **more: Any) -> PullResult:
        return pull(PullRequest(base=base, **more), self.context)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "forge")


def needed(source: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_size
        for path in source.iterdir()
        if path.is_file() and path.name not in UNNEEDED
    }


def nothing() -> None:
    pass


def test_a_base_is_fetched_told_about_and_found_offline(
    server: HubServer, told: Told, source: Path, cache: Path
) -> None:
    import huggingface_hub

    expected = needed(source)
    result = told.pull(REPO)
    assert dict(server.served) == expected
    assert result.bytes == result.downloaded_bytes == sum(expected.values())
    assert (result.base, result.repo, result.license) == (REPO, REPO, "apache-2.0")
    assert (result.parameters, result.missing_bytes, result.gated) == (1000, 0, False)
    assert "license apache-2.0" in told.text and "are free in" in told.text
    progress = [e.payload for e in told.events if e.kind == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == result.bytes
    base = resolve_base(REPO)
    assert result.path == str(base.path)
    assert {path.name for path in base.path.iterdir()} == set(expected)
    for name in expected:
        assert (base.path / name).read_bytes() == (source / name).read_bytes()
    assert load_base(base).tokenizer.has_chat_template
    assert huggingface_hub.is_offline_mode()  # this process was never online
    endpoints = {path.split("/")[1] for path in server.asked}
    assert endpoints == {"api", "someone", "cdn"}  # and no telemetry
    assert {path for path in server.asked if path.startswith("/api")} == {f"/api/models/{REPO}"}


def test_asked_again_it_fetches_nothing(inside: HubServer, told: Told) -> None:
    first = told.pull(REPO)
    inside.served.clear()
    again = told.pull(REPO)
    assert (again.downloaded_bytes, again.path) == (0, first.path)
    assert not inside.served


def test_the_cache_is_one_that_huggingface_hub_reads(
    inside: HubServer, told: Told, cache: Path
) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    result = told.pull(REPO)
    assert snapshot_download(REPO, cache_dir=cache, local_files_only=True) == result.path
    (repo,) = scan_cache_dir(cache).repos
    assert repo.repo_id == REPO
    assert repo.size_on_disk == result.bytes
    assert not scan_cache_dir(cache).warnings


def test_a_dry_run_fetches_nothing(inside: HubServer, told: Told, cache: Path) -> None:
    result = told.pull(REPO, dry_run=True)
    assert result.path is None and result.downloaded_bytes == 0
    assert result.missing_bytes == result.bytes > 0
    assert not inside.served and not cache.exists()
    told.pull(REPO)
    after = told.pull(REPO, dry_run=True)
    assert after.missing_bytes == 0 and after.path is not None


def test_a_known_name_stands_for_its_repository(inside: HubServer, told: Told) -> None:
    result = told.pull("qwen3-0.6b", dry_run=True)
    assert (result.base, result.repo) == ("qwen3-0.6b", KNOWN)
    assert result.parameters == 596049920
    assert "Training it takes about" in told.text
    alias = told.pull("unsloth/Qwen3-0.6B-unsloth-bnb-4bit", dry_run=True)
    assert alias.repo == KNOWN
    with pytest.raises(NotFound, match=r"Qwen/Qwen3-0\.6B"):  # not on this server
        told.pull("qwen3-0.6b", original=True)
    assert "/api/models/Qwen/Qwen3-0.6B" in inside.asked


def test_settings_far_from_usual_are_told(inside: HubServer, told: Told, source: Path) -> None:
    inside.repositories["mlx-community/Llama-3.2-3B-Instruct-4bit"] = source
    told.pull("llama-3.2-3b", dry_run=True)  # with the default settings, rank 16
    assert "rank 64 (16)" in told.text


def test_what_ships_here_is_not_fetched(inside: HubServer, told: Told) -> None:
    result = told.pull("forge-nano")
    assert result.repo is None and result.downloaded_bytes == 0 and result.bytes > 10_000_000
    assert result.path is not None and Path(result.path, "config.json").is_file()
    assert not inside.asked
    with pytest.raises(BadInput, match="no other original"):
        told.pull("forge-nano", original=True)


def test_names_that_are_none(inside: HubServer, told: Told, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no base model 'gpt-5'"):
        told.pull("gpt-5")
    with pytest.raises(BadInput, match="which model"):
        told.pull(REPO, original=True)
    with pytest.raises(BadInput, match="is a folder"):
        told.pull(str(tmp_path))
    assert not inside.asked
    with pytest.raises(NotFound, match="no repository someone/nothing"):
        told.pull("someone/nothing")
    with pytest.raises(NotFound, match=r"'-\./x' is no name"):
        told.pull("-./x")


def test_an_interrupted_download_goes_on(server: HubServer, source: Path) -> None:
    """The process is killed in the middle of the weights; the next one fetches only the rest."""
    size = needed(source)["model.safetensors"]
    server.faults.seconds_per_chunk = 0.4
    stop = threading.Event()
    listing = list_repository(REPO, nothing)
    (weights,) = [file for file in listing.files if file.name == "model.safetensors"]
    part = listing.cache / "blobs" / f"{weights.etag}.part"

    def progress(done: int, total: int, message: str) -> None:
        assert total == listing.bytes
        if part.is_file() and part.stat().st_size > 0:
            stop.set()

    with pytest.raises(Cancelled):
        download(listing, progress, cancel_when(stop))
    have = part.stat().st_size
    assert 0 < have < size
    with pytest.raises(NotFound, match="not on this machine"):
        resolve_base(REPO)
    missing = listing.bytes - sum(hub_child._present(listing, file) for file in listing.files)
    server.faults.seconds_per_chunk = 0.0
    assert download(listing, lambda *_: None, nothing) == missing
    assert server.started["model.safetensors"] == [0, have]
    assert missing >= size - have
    assert resolve_base(REPO).path == listing.snapshot


def cancel_when(stop: threading.Event) -> Callable[[], None]:
    def check() -> None:
        if stop.is_set():
            raise Cancelled("stop")

    return check


def resolve_fails(repo: str) -> bool:
    try:
        resolve_base(repo)
    except ForgeError:
        return True
    return False


def test_connections_that_break_are_taken_up_again(
    inside: HubServer, source: Path, cache: Path
) -> None:
    size = needed(source)["model.safetensors"]
    inside.faults.cut = {"model.safetensors": [30_000, 0, 50_000, 0]}
    inside.faults.file_status = [503]
    listing = list_repository(REPO, nothing)
    received = download(listing, lambda *_: None, nothing, pause_seconds=0.01)
    assert received == listing.bytes  # nothing came twice
    assert inside.served["model.safetensors"] == size


def test_a_server_without_ranges_is_read_from_the_start(
    inside: HubServer, source: Path, cache: Path
) -> None:
    size = needed(source)["model.safetensors"]
    inside.faults.cut = {"model.safetensors": [30_000]}
    inside.faults.ranges = False
    listing = list_repository(REPO, nothing)
    received = download(listing, lambda *_: None, nothing, pause_seconds=0.01)
    assert inside.served["model.safetensors"] == size + 30_000
    assert received == listing.bytes + 30_000
    assert resolve_base(REPO).path == listing.snapshot


def test_a_file_that_never_ends_is_given_up(inside: HubServer, cache: Path) -> None:
    inside.faults.cut = {"model.safetensors": [0] * 5}
    listing = list_repository(REPO, nothing)
    with pytest.raises(Unavailable) as caught:
        download(listing, lambda *_: None, nothing, pause_seconds=0.01)
    assert "goes on where it has stopped" in caught.value.next_step
    assert resolve_fails(REPO)


def test_a_damaged_file_is_removed_and_fetched_again(
    inside: HubServer, told: Told, source: Path
) -> None:
    inside.faults.damaged = {"model.safetensors", "config.json"}
    with pytest.raises(CorruptArtifact, match=r"config\.json of someone/tiny is damaged"):
        told.pull(REPO)
    inside.faults.damaged = {"model.safetensors"}
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors"):
        told.pull(REPO)
    assert resolve_fails(REPO)
    inside.faults.damaged = set()
    inside.served.clear()
    told.pull(REPO)
    assert inside.served["model.safetensors"] == needed(source)["model.safetensors"]
    assert not inside.served["config.json"]
    # One that was damaged on this disk, too, is found and fetched anew.
    weights = resolve_base(REPO).path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    with pytest.raises(CorruptArtifact):
        told.pull(REPO)
    told.pull(REPO)
    assert weights.read_bytes() == (source / "model.safetensors").read_bytes()


def test_the_disk_is_too_small(
    inside: HubServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(OutOfSpace) as caught:
        told.pull(REPO)
    assert "HF_HOME" in caught.value.next_step
    assert not inside.served
    assert told.pull(REPO, dry_run=True).free_bytes == 1_000_000


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [(errno.ENOSPC, OutOfSpace, "HF_HOME"), (errno.EACCES, BadInput, "access")],
)
def test_the_disk_says_no_meanwhile(
    inside: HubServer,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[ForgeError],
    said: str,
) -> None:
    def fails(*args: Any) -> None:
        raise OSError(number, "no", "file")

    listing = list_repository(REPO, nothing)
    monkeypatch.setattr(hub_child._Download, "_stream", fails)
    with pytest.raises(kind) as caught:
        download(listing, lambda *_: None, nothing)
    assert said in caught.value.next_step


def test_a_partial_file_that_is_too_long_is_begun_again(
    inside: HubServer, source: Path, cache: Path
) -> None:
    listing = list_repository(REPO, nothing)
    for file in listing.files:
        part = listing.cache / "blobs" / f"{file.etag}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"x" * (file.bytes + 1))
    assert list_repository(REPO, nothing).present <= listing.bytes
    assert download(listing, lambda *_: None, nothing) == listing.bytes
    assert resolve_base(REPO).path == listing.snapshot


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_base_says_what_to_do(
    inside: HubServer, told: Told, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    inside.faults.gated = status
    inside.token = "hf_accepted"
    with pytest.raises(NotFound, match="is gated") as caught:
        told.pull(REPO)
    assert f"{inside.address}/{REPO}" in caught.value.next_step
    assert "hf auth login" in caught.value.next_step
    assert "license" in told.text
    assert not inside.served
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert told.pull(REPO).gated


def test_rate_limits_and_faults_of_the_server(inside: HubServer, told: Told) -> None:
    inside.faults.status = 429
    inside.faults.headers = {"Retry-After": "77"}
    with pytest.raises(Unavailable, match="limits") as caught:
        told.pull(REPO)
    assert "77 seconds" in caught.value.next_step
    inside.faults.status = 500
    with pytest.raises(Unavailable, match="has a fault"):
        told.pull(REPO)
    inside.faults.status = 403
    with pytest.raises(NotFound, match="does not give"):
        told.pull(REPO)
    inside.faults.status = 0
    inside.faults.headers = {}
    inside.faults.file_status = [429]
    with pytest.raises(Unavailable, match="limits") as caught:
        told.pull(REPO)
    assert "some minutes" in caught.value.next_step


def test_a_server_that_keeps_failing(inside: HubServer, cache: Path) -> None:
    listing = list_repository(REPO, nothing)
    inside.faults.file_status = [502] * 5
    with pytest.raises(Unavailable, match="has a fault") as caught:
        download(listing, lambda *_: None, nothing, pause_seconds=0.01)
    assert "502" in caught.value.cause


def test_no_network(told: Told, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9.* cannot be reached"):
        told.pull(REPO)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json", "tokenizer.json", "tiny-q4_k_m.gguf"], "GGUF"),
        (["config.json", "tokenizer.json", "pytorch_model-00001-of-00002.bin"], "PyTorch"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter"),
        (["params.json", "consolidated.00.pth"], ".pth"),
        (["config.json", "model.safetensors"], "tokenizer.json or tokenizer.model"),
        (["README.md"], "config.json, model*.safetensors"),
    ],
)
def test_repositories_without_trainable_weights(
    inside: HubServer, told: Told, tmp_path: Path, names: list[str], said: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    inside.repositories["someone/other"] = folder
    with pytest.raises(UnsupportedModel) as caught:
        told.pull("someone/other")
    assert said in caught.value.cause
    assert not inside.served


def test_an_architecture_that_cannot_be_trained_is_not_fetched(
    inside: HubServer, told: Told
) -> None:
    inside.about["config"] = {"model_type": "mamba"}
    with pytest.raises(UnsupportedModel, match="architecture"):
        told.pull(REPO)
    assert not inside.served


def test_names_from_the_hub_cannot_leave_the_cache(inside: HubServer, told: Told) -> None:
    inside.about["sha"] = "../../elsewhere"
    with pytest.raises(ForgeError, match="Could not fetch"):
        told.pull(REPO)
    assert not inside.served


def test_two_at_once_fetch_it_once(server: HubServer, source: Path, cache: Path) -> None:
    server.faults.seconds_per_chunk = 0.05
    listing = list_repository(REPO, nothing)
    received: list[int] = []

    def fetch() -> None:
        received.append(download(listing, lambda *_: None, nothing))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(received) == [0, listing.bytes]
    assert dict(server.served) == needed(source)


def test_a_child_that_dies_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ForgeError, match="ended unexpectedly"):
        list_repository(REPO, nothing)
