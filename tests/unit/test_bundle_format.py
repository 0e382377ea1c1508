"""The format of a bundle: anything but what was written is refused in words."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_mcp.errors import BadInput, CorruptArtifact, ForgeError, NotFound
from forge_mcp.serving import bundle as engine
from forge_mcp.serving.bundle import BundleManifest, Source, opened_bundle, write_bundle


def members(path: Path) -> dict[str, bytes]:
    """As tarfile reads it, which knows nothing of ours."""
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


TINY = {
    "deployment/deployment.json": b"{}\n",
    "export/model.gguf": b"GGUF" + b"x" * 700,
    "export/parity.json": b"{}",
    "export/tokenizer.json": b"",
    "report/report.md": b"# r\n",
}


def described(kind: str) -> dict[str, Any]:
    return {
        "id": f"{kind}-p-12ab",
        "inputs_hash": "0" * 64,
        "parents": [],
        "repository": None,
        "revision": None,
        "dirty": False,
        "settings": {},
        "versions": {},
        "created": "2026-11-24T00:00:00+00:00",
        "result": {},
    }


def tiny_manifest(**changed: Any) -> dict[str, Any]:
    sources = {name: Source(content=data) for name, data in TINY.items()}
    return {
        "format": "forge-bundle",
        "version": 1,
        "project": "p",
        "model": "p-12ab",
        "target": "llamacpp",
        "run": "run-p-1",
        "system_prompt": "You know p.",
        "contains_code": False,
        "made": dict.fromkeys(
            ("corpus", "dataset", "report", "revision", "dirty", "sha256", "quantization", "bytes")
        ),
        "by": dict.fromkeys(("user", "host", "face", "process")),
        "created": "2026-11-24T00:00:00+00:00",
        "artifacts": {
            "export": described("export"),
            "report": described("report"),
            "deployment": described("deploy"),
        },
        "files": {name: one.described().model_dump() for name, one in sources.items()},
    } | changed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.forge.tar"
    sources = {name: Source(content=data) for name, data in TINY.items()}
    write_bundle(path, BundleManifest.model_validate(tiny_manifest()), sources)
    return path


def read(path: Path, folder: Path) -> dict[str, bytes]:
    """What comes out of a bundle."""
    places = {kind: folder / kind for kind in ("deployment", "export", "report", "corpus")}
    for place in places.values():
        place.mkdir()
    with opened_bundle(path) as opened:
        opened.extract(places)
    return {
        one.relative_to(folder).as_posix(): one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file()
    }


def read_bytes(data: bytes) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.tar"
        path.write_bytes(data)
        (Path(folder) / "out").mkdir()
        return read(path, Path(folder) / "out")


def test_what_goes_in_comes_out(tiny: Path) -> None:
    assert read_bytes(tiny.read_bytes()) == TINY
    assert {name: data for name, data in members(tiny).items() if "bundle" not in name} == TINY


def test_a_file_that_is_not_there_or_no_bundle(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no bundle"), opened_bundle(tmp_path / "gone"):
        pass
    with pytest.raises(NotFound) as folder, opened_bundle(tmp_path):
        pass
    assert "a folder" in folder.value.cause
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("README.md")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    for data in (
        b"",
        b"x" * 5000,
        gzip.compress(tiny.read_bytes()),
        b"\0" * 2048,
        other.getvalue(),
    ):
        with pytest.raises(BadInput, match="no bundle of AI Forge"):
            read_bytes(data)


@given(st.data())
@settings(max_examples=150)
def test_any_changed_byte_is_found(tiny: Path, data: st.DataObject) -> None:
    raw = bytearray(tiny.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((BadInput, CorruptArtifact)):
        read_bytes(bytes(raw))


@given(st.data())
def test_any_cut_or_addition_is_found(tiny: Path, data: st.DataObject) -> None:
    raw = tiny.read_bytes()
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    more = raw + data.draw(st.binary(min_size=1, max_size=2000))
    for changed in (cut, more):
        with pytest.raises((BadInput, CorruptArtifact)):
            read_bytes(changed)


@given(st.binary(max_size=3000))
def test_any_bytes_are_refused_in_words(raw: bytes) -> None:
    with pytest.raises((BadInput, CorruptArtifact)):
        read_bytes(raw)


def forged(rows: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar with these members, written by tarfile."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in rows:
            tar.addfile(info, io.BytesIO(data))
    end = tar.offset
    return made.getvalue()[:end]


def row(name: str, data: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def with_head(manifest: dict[str, Any] | bytes, *rows: tuple[tarfile.TarInfo, bytes]) -> bytes:
    head = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return forged(
        [row("bundle.json", head), row("bundle.json.sha256", engine._checksum(head)), *rows]
    )


WHOLE = [row(name, data) for name, data in sorted(TINY.items())]


def test_a_tar_by_another_hand_is_read_too() -> None:
    assert read_bytes(with_head(tiny_manifest(), *WHOLE)) == TINY


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([row("/etc/passwd", b"x"), *WHOLE], "leads out of the bundle"),
        ([row("export/../../x", b"x"), *WHOLE], "leads out of the bundle"),
        ([row("export/other", b"x"), *WHOLE], "does not stand in its manifest"),
        ([*WHOLE[:2], WHOLE[1], *WHOLE[2:]], "is there twice"),
        ([*WHOLE, WHOLE[4]], "is there twice"),
        ([*WHOLE, row("z", b"x")], "does not stand in its manifest"),
        ([WHOLE[1], WHOLE[0], *WHOLE[2:]], r"deployment/deployment\.json is missing"),
        ([*WHOLE[:3]], r"it ends before export/tokenizer\.json"),
        ([row("bundle.json", b"{}"), *WHOLE], "is there twice"),
        (
            [row(WHOLE[0][0].name, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
            "a symbolic link",
        ),
        ([row(WHOLE[0][0].name, b"", type=tarfile.LNKTYPE, linkname="x")], "a hard link"),
        ([row(WHOLE[0][0].name, b"", type=tarfile.CHRTYPE)], "a device"),
        ([row(WHOLE[0][0].name, b"", type=tarfile.FIFOTYPE)], "a pipe"),
        ([row("export", b"", type=tarfile.DIRTYPE)], "a folder"),
        ([row(WHOLE[0][0].name, b"", type=tarfile.GNUTYPE_SPARSE)], "a sparse file"),
        ([row("export/" + "x" * 200, b"")], "no plain file"),  # GNU's header for long names
        ([row(WHOLE[0][0].name, b"{}\n", mode=0o777), *WHOLE[1:]], "not as it was written"),
        ([row(WHOLE[0][0].name, b"{}\n\n"), *WHOLE[1:]], "has 4 bytes, its manifest says 3"),
        ([row(WHOLE[0][0].name, b"{}x"), *WHOLE[1:]], "the checksum of deployment"),
    ],
)
def test_tricks_with_members_are_refused(
    rows: list[tuple[tarfile.TarInfo, bytes]], cause: str
) -> None:
    with pytest.raises(CorruptArtifact) as error:
        read_bytes(with_head(tiny_manifest(), *rows))
    assert re.search(cause, error.value.cause), error.value.cause


def test_sizes_that_are_only_claimed_cost_nothing() -> None:
    """A terabyte in a manifest and a header, and nothing behind them."""
    files = tiny_manifest()["files"]
    files["export/model.gguf"]["bytes"] = 1 << 40
    with pytest.raises(CorruptArtifact) as error:
        read_bytes(with_head(tiny_manifest(files=files), *WHOLE))
    assert "it was cut off" in error.value.cause
    info = tarfile.TarInfo("bundle.json")
    info.size = 1 << 40
    with pytest.raises(CorruptArtifact) as error:
        read_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    assert "claims" in error.value.cause
    info.size = -5
    with pytest.raises(BadInput, match="no bundle"):
        read_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in tiny_manifest()["files"].items() if key != name}


ANY_FILE = {"bytes": 0, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("manifest", "cause"),
    [
        (tiny_manifest(format="zip"), "format"),
        (tiny_manifest(version=0), "version"),
        (tiny_manifest(more=1), "more"),
        (tiny_manifest(model="p-other"), "not the model of its deployment"),
        (tiny_manifest(files=without("export/model.gguf")), r"lists no export/model\.gguf"),
        (tiny_manifest(files=tiny_manifest()["files"] | {"export/../x": ANY_FILE}), "no place"),
        (tiny_manifest(files=tiny_manifest()["files"] | {"/x": ANY_FILE}), "no place"),
        (
            tiny_manifest(files=tiny_manifest()["files"] | {"export/manifest.json": ANY_FILE}),
            "no place",
        ),
        (
            tiny_manifest(files=tiny_manifest()["files"] | {"corpus/blocks.jsonl": ANY_FILE}),
            "belongs to nothing",
        ),
        (tiny_manifest(artifacts={"export": described("export")}), "describes no"),
        (
            tiny_manifest(artifacts=tiny_manifest()["artifacts"] | {"export": described("report")}),
            "no id of a export",
        ),
        (
            tiny_manifest(
                artifacts=tiny_manifest()["artifacts"]
                | {"export": described("export") | {"id": "export-../../x"}}
            ),
            "id",
        ),
        (
            tiny_manifest(
                artifacts=tiny_manifest()["artifacts"]
                | {"export": described("export") | {"result": {"path": "exports/../../x"}}}
            ),
            "leads out of the workspace",
        ),
        (tiny_manifest(made={"corpus": "../x"}), "made"),
        (b"[1]", "valid dictionary"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"version": 1e999}', "version: Input should be 1"),
    ],
)
def test_a_manifest_that_says_nothing_valid_is_refused(
    manifest: dict[str, Any] | bytes, cause: str
) -> None:
    with pytest.raises(CorruptArtifact) as error:
        read_bytes(with_head(manifest, *WHOLE))
    assert re.search(cause, error.value.cause), error.value.cause


def test_a_disk_that_cannot_be_read_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(engine, "_read_manifest", broken)
    with pytest.raises(ForgeError, match="read the bundle"):
        read_bytes(tiny.read_bytes())


def test_a_newer_version_is_said(tiny: Path) -> None:
    with pytest.raises(BadInput, match="newer AI Forge") as error:
        read_bytes(with_head({"format": "forge-bundle", "version": 2, "future": True}))
    assert "Upgrade" in error.value.next_step
    head = json.dumps(tiny_manifest()).encode()
    with pytest.raises(CorruptArtifact) as lost:
        read_bytes(forged([row("bundle.json", head), *WHOLE]))
    assert "sha256 is missing" in lost.value.cause
