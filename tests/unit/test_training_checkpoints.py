"""Checkpoints: whole or not used, kept to a number, and never the price of a failed save."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp import machine
from forge_mcp.errors import CorruptArtifact, OutOfSpace
from forge_mcp.training import checkpoints
from forge_mcp.training.checkpoints import (
    Checkpoint,
    Progress,
    latest_checkpoint,
    load_checkpoint,
    load_newest,
    random_state,
    save_checkpoint,
    set_random_state,
)
from forge_mcp.workspace import fsync_path, hash_file

mx = machine.mlx()
FILES = {
    "adapters.safetensors",
    "best.safetensors",
    "optimizer.safetensors",
    "history.jsonl",
    "progress.json",
    "checksums.json",
}


def made(step: int, size: int = 8) -> Checkpoint:
    weights = {"layer.lora_a": mx.arange(size, dtype=mx.float32) + step}
    state = {
        "step": mx.array(step, dtype=mx.uint64),
        "layer.lora_a.m": mx.arange(size, dtype=mx.uint8),
    }
    progress = Progress(step, 1.5, step - 1, [step, 2**32 - 1], "of this run")
    rows: list[Any] = [{"step": 0, "seconds": 0.0}, {"step": step, "loss": 0.1, "seconds": 2.5}]
    return Checkpoint(progress, weights, {"layer.lora_a": weights["layer.lora_a"] * 2}, state, rows)


def same(left: Checkpoint, right: Checkpoint) -> bool:
    arrays = zip(left[1:4], right[1:4], strict=True)
    return (left.progress, left.history) == (right.progress, right.history) and all(
        one.keys() == other.keys()
        and all(
            one[name].dtype == other[name].dtype and mx.array_equal(one[name], other[name])
            for name in one
        )
        for one, other in arrays
    )


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, made(7), keep=2)
    assert path == tmp_path / "checkpoints/step-7"
    assert {one.name for one in path.iterdir()} == FILES
    assert same(load_checkpoint(path), made(7))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, made(step), keep=3)
    assert steps(tmp_path) == ["step-10", "step-11", "step-9"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-11", "by number, not by name"
    save_checkpoint(tmp_path, made(11), keep=3)  # the same step again
    assert steps(tmp_path) == ["step-10", "step-11", "step-9"]
    (tmp_path / "checkpoints/step-by-step").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-11"


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(path: Path) -> None:
        renamed = (tmp_path / "checkpoints/step-3").exists()
        synced.append(f"{path.name} {'after' if renamed else 'before'}")
        fsync_path(path)

    monkeypatch.setattr(checkpoints, "fsync_path", note)
    save_checkpoint(tmp_path, made(3), keep=1)
    before = {f"{name} before" for name in (*FILES, ".staged")}
    assert set(synced[:-1]) == before
    assert synced[-1] == "checkpoints after"


def test_a_staged_folder_of_a_killed_writer_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1), keep=1)
    left = tmp_path / "checkpoints/.staged"
    left.mkdir()
    (left / "adapters.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-1"
    save_checkpoint(tmp_path, made(2), keep=1)
    assert steps(tmp_path) == ["step-2"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run"), made(3), keep=1)


@given(
    name=st.sampled_from(sorted(FILES)),
    at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    truncate=st.booleans(),
)
def test_no_byte_can_be_another_one(
    saved: Path, name: str, at: float, bit: int, truncate: bool
) -> None:
    path = saved / name
    whole = path.read_bytes()
    position = int(at * len(whole))
    damaged = bytearray(whole)
    damaged[position] ^= 1 << bit
    try:
        path.write_bytes(whole[:position] if truncate else damaged)
        with pytest.raises(CorruptArtifact, match="step-3 is damaged") as caught:
            load_checkpoint(saved)
        # A checksum that is another one speaks against the file it is of.
        assert name in caught.value.cause or name == "checksums.json"
        assert str(saved) in caught.value.next_step
    finally:
        path.write_bytes(whole)
    load_checkpoint(saved)


def test_nor_can_one_of_the_checksums(saved: Path) -> None:
    """Not even where it would be the same JSON."""
    path = saved / "checksums.json"
    whole = path.read_bytes()
    try:
        for at, byte in enumerate(whole):
            for other in b" \n\t0":
                if other != byte:
                    path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
                    with pytest.raises(CorruptArtifact):
                        load_checkpoint(saved)
        path.write_bytes(whole + b" ")
        with pytest.raises(CorruptArtifact):
            load_checkpoint(saved)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_can_be_missing(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, made(3), keep=1)
    (path / name).unlink()
    with pytest.raises(CorruptArtifact) as caught:
        load_checkpoint(path)
    assert caught.value.cause == f"{name}: No such file or directory"


def test_whole_files_that_say_nothing_are_damaged_too(tmp_path: Path) -> None:
    """Written so by a defect, or by another version: every checksum is right."""
    path = save_checkpoint(tmp_path, made(3), keep=1)
    (path / "progress.json").write_text("{}\n")
    sums = json.loads((path / "checksums.json").read_text())
    sums["progress.json"] = hash_file(path / "progress.json")
    (path / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
    with pytest.raises(CorruptArtifact, match="step-3"):
        load_checkpoint(path)
    del sums["best.safetensors"]
    (path / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
    with pytest.raises(CorruptArtifact) as caught:
        load_checkpoint(path)
    assert "checksums.json" in caught.value.cause


def test_the_newest_whole_one_is_loaded_and_the_others_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    assert load_newest(tmp_path, said.append) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, made(step), keep=3)
    assert same(load_newest(tmp_path, said.append) or made(0), made(3))
    assert said == []
    for step in (3, 2):
        (tmp_path / f"checkpoints/step-{step}/history.jsonl").write_text("")
    assert same(load_newest(tmp_path, said.append) or made(0), made(1))
    assert said == [
        "The checkpoint step-3 is damaged (history.jsonl is not what was written); the one "
        "before, step-2, is used.",
        "The checkpoint step-2 is damaged (history.jsonl is not what was written); the one "
        "before, step-1, is used.",
    ]
    assert steps(tmp_path) == ["step-1"], "or they would count among those that are kept"
    (tmp_path / "checkpoints/step-1/checksums.json").unlink()
    assert load_newest(tmp_path, said.append) is None
    assert said[-1].endswith("there is no other.")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 512 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_costs_no_checkpoint(small_disk: Path) -> None:
    """MLX tells of the failed write without saying why."""
    save_checkpoint(small_disk, made(1), keep=2)
    with pytest.raises(OutOfSpace, match="step 2 could not be saved: no space left") as caught:
        save_checkpoint(small_disk, made(2, size=100_000), keep=2)
    assert "Unable to write" in caught.value.cause
    assert str(small_disk) in caught.value.message
    assert "goes on from step-1" in caught.value.next_step
    assert steps(small_disk) == ["step-1"], "and what was half written is gone"
    assert same(load_checkpoint(small_disk / "checkpoints/step-1"), made(1))
    save_checkpoint(small_disk, made(2), keep=2)


def test_a_disk_that_is_full_from_the_first_checkpoint_on(small_disk: Path) -> None:
    with pytest.raises(OutOfSpace) as caught:
        save_checkpoint(small_disk, made(1, size=100_000), keep=2)
    assert "begins anew" in caught.value.next_step


@pytest.mark.parametrize("fails", ["history.jsonl", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_save_that_fails_anywhere_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, number: int
) -> None:
    save_checkpoint(tmp_path, made(1), keep=1)
    write_text, fsync, rename = Path.write_text, fsync_path, Path.rename

    def broken(what: str) -> None:
        if what == fails:
            raise OSError(number, os.strerror(number))

    def written(path: Path, *given: Any) -> int:
        broken(path.name)
        return write_text(path, *given)

    def synced(path: Path) -> None:
        broken("fsync")
        fsync(path)

    def renamed(path: Path, target: Path) -> Path:
        broken("rename")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", written)
        patched.setattr(checkpoints, "fsync_path", synced)
        patched.setattr(Path, "rename", renamed)
        expected = OSError if number == errno.EIO else OutOfSpace
        with pytest.raises(expected):
            save_checkpoint(tmp_path, made(2), keep=1)
    assert steps(tmp_path) == ["step-1"]
    assert same(load_checkpoint(tmp_path / "checkpoints/step-1"), made(1))


def test_a_failed_write_on_a_disk_with_room_is_no_lack_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str, arrays: Any) -> None:
        raise RuntimeError("[save_safetensors] a defect")

    monkeypatch.setattr(mx, "save_safetensors", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        save_checkpoint(tmp_path, made(1), keep=1)


@given(seed=st.integers(0, 2**64 - 1))
def test_randomness_goes_on_where_it_was(seed: int) -> None:
    mx.random.seed(seed)
    mx.random.uniform(shape=(3,))
    state = random_state()
    first = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(0)
    set_random_state(state)
    assert random_state() == state
    assert mx.random.uniform(shape=(4,)).tolist() == first
