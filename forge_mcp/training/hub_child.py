"""The process that is online: `python -m forge_mcp.training.hub_child REQUEST` (see hub.py).

huggingface_hub finds the addresses, the token and the words of the Hub's errors; the files are
fetched here, because it (2.4) begins a file anew that was interrupted. Each is written to
`blobs/<checksum>.part`, which the next call goes on with, compared with the Hub's checksum, and
only then put into the cache under the name that huggingface_hub gives it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import (
    CorruptArtifact,
    ForgeError,
    NotFound,
    OutOfSpace,
    Unavailable,
    UnsupportedModel,
    from_os_error,
)
from forge_mcp.locks import FileLock
from forge_mcp.training.base_files import OTHER_WEIGHTS, TOKENIZER_FILES
from forge_mcp.training.hub import PROGRESS_SECONDS, HubRequest, Listing, RemoteFile

# At the top of a repository; nothing in a subfolder and no other copy of the weights is fetched.
NEEDED = re.compile(
    r"config\.json|generation_config\.json|hf_quant_config\.json"
    r"|model[^/]*\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer[^/]*\.(json|model)|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|vocab\.json|merges\.txt|(LICENSE|NOTICE|USE_POLICY)[^/]*",
)
FILES_AT_A_TIME = 4
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0  # without a byte
ATTEMPTS = 5  # in a row that bring nothing new
LONGEST_PAUSE_SECONDS = 20.0
EMITTING = threading.Lock()
LOGIN = "log in with 'hf auth login' (or set HF_TOKEN)"


def main(arguments: list[str]) -> int:
    """Run a request (JSON); events go to standard output, one JSON object a line."""
    request = HubRequest.model_validate_json(arguments[0])
    machine.die_with_parent()
    threading.Thread(target=_die_with, args=(request.parent,), daemon=True).start()
    return perform(request)


def perform(request: HubRequest) -> int:
    """List a repository, or fetch what was listed. Tells events; returns the exit code."""
    try:
        if request.listing is None:
            _emit("result", **_listed(request).model_dump(mode="json"))
        else:
            _emit("result", received=_Download(request, request.listing).run())
        return 0
    except ForgeError as error:
        _emit("error", **error.as_dict())
    except Exception as error:
        _emit("error", **_in_words(error, request.repo).as_dict())
    return 1


def _emit(kind: str, **payload: Any) -> None:
    line = json.dumps({"kind": kind, "payload": payload}) + "\n"
    with EMITTING:
        sys.stdout.write(line)
        sys.stdout.flush()


def _die_with(parent: int) -> None:
    """End this process when its parent is gone (where the kernel does not)."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _listed(request: HubRequest) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(request.repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = [
        RemoteFile(
            name=one.rfilename,
            bytes=one.size or 0,
            etag=one.lfs.sha256 if one.lfs else str(one.blob_id),
            sha256=one.lfs.sha256 if one.lfs else None,
        )
        for one in info.siblings or []
        if NEEDED.fullmatch(one.rfilename)
    ]
    _require_trainable(request.repo, [one.rfilename for one in info.siblings or []])
    listing = Listing(
        repo=info.id,
        commit=str(info.sha),
        files=files,
        license=info.card_data.get("license") if info.card_data else None,
        gated=bool(info.gated),
        parameters=info.safetensors.total if info.safetensors else None,
        architecture=(info.config or {}).get("model_type"),
        cache=request.cache,
        present=0,
    )
    present = sum(min(_present(listing, file), file.bytes) for file in files)
    return listing.model_copy(update={"present": present})


def _require_trainable(repo: str, names: list[str]) -> None:
    """Raises:
    UnsupportedModel: the repository lacks what training needs; what it has instead is named.
    """
    found = set(names)
    if not any(NEEDED.fullmatch(name) and name.endswith(".safetensors") for name in found):
        for pattern, cause, next_step in OTHER_WEIGHTS:
            if other := sorted(name for name in found if Path(name).match(pattern)):
                raise UnsupportedModel(
                    f"{repo} has no weights that can be trained.",
                    cause=f"{cause}: {other[0]}",
                    next_step=next_step,
                )
    missing = [] if "config.json" in found else ["config.json"]
    if not any(re.fullmatch(r"model[^/]*\.safetensors", name) for name in found):
        missing.append("model*.safetensors")
    if not found.intersection(TOKENIZER_FILES):
        missing.append(" or ".join(TOKENIZER_FILES))
    if missing:
        raise UnsupportedModel(
            f"{repo} is no model that can be trained.",
            cause=f"missing in the repository: {', '.join(missing)}",
            next_step="Choose a repository in Hugging Face format with safetensors weights.",
        )


def _blob(listing: Listing, file: RemoteFile) -> Path:
    return listing.cache / "blobs" / file.etag


def _part(listing: Listing, file: RemoteFile) -> Path:
    return listing.cache / "blobs" / f"{file.etag}.part"


def _present(listing: Listing, file: RemoteFile) -> int:
    for path in (_blob(listing, file), _part(listing, file)):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_size
    return 0


class _Download:
    """The fetching of one listing."""

    def __init__(self, request: HubRequest, listing: Listing) -> None:
        self.listing = listing
        self.pause = request.pause_seconds
        self.done: dict[str, int] = {}
        self.received = 0
        self.lock = threading.Lock()

    def run(self) -> int:
        """Fetch, compare, put in place. Returns the bytes that were received."""
        # A second process that fetches the same waits, and then finds it done.
        with FileLock(self.listing.cache / "blobs", folder=True) as lock:
            lock.wait(lambda: None, self._wait)
            self._fetch_all()
            self._put_in_place()
        return self.received

    def _fetch_all(self) -> None:
        self.done = {file.name: _present(self.listing, file) for file in self.listing.files}
        # Small ones first: they tell at once whether this user may have the large ones.
        files = sorted(self.listing.files, key=lambda file: file.bytes)
        with self._telling():
            self._fetch(files[0])
            with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
                for work in [pool.submit(self._fetch, file) for file in files[1:]]:
                    work.result()

    def _put_in_place(self) -> None:
        listing = self.listing
        for file in listing.files:
            _link(_blob(listing, file), listing.snapshot / file.name)
        reference = listing.cache / "refs" / "main"
        reference.parent.mkdir(exist_ok=True)
        written = reference.with_name(f"main.{os.getpid()}")
        written.write_text(listing.commit)
        written.replace(reference)

    def _wait(self) -> None:
        _emit("progress", done=0, message="another process fetches this; waiting for it")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        stop = threading.Event()

        total = self.listing.bytes / 1e6

        def tell() -> None:
            ended = False
            while not ended:
                ended = stop.wait(PROGRESS_SECONDS)
                done = sum(self.done.values())
                _emit("progress", done=done, message=f"{done / 1e6:,.1f} of {total:,.1f} MB")

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _fetch(self, file: RemoteFile) -> None:
        blob, part = _blob(self.listing, file), _part(self.listing, file)
        if not blob.is_file():
            self._receive(file, part)
        held = blob if blob.is_file() else part
        if held.stat().st_size != file.bytes or _checksum(held, file) != file.etag:
            held.unlink()
            raise CorruptArtifact(
                f"{file.name} of {self.listing.repo} is damaged.",
                cause="its checksum is not the one that the Hub gives for it",
                next_step="It was removed: run 'forge-mcp pull' again, which fetches only it.",
            )
        if held is part:
            part.replace(blob)
        self.done[file.name] = file.bytes

    def _receive(self, file: RemoteFile, part: Path) -> None:
        """Append what is missing to the partial file; connections that break are taken up again."""
        left = ATTEMPTS
        while True:
            have = part.stat().st_size if part.is_file() else 0
            if have > file.bytes:
                part.unlink()
                have = 0
            if have == file.bytes and part.is_file():
                return
            try:
                self._stream(file, part, have)
                reason: Exception | None = None
            except Exception as error:
                if not _may_pass(error):
                    raise
                reason = error
            if part.is_file() and part.stat().st_size > have:
                left = ATTEMPTS
                continue
            left -= 1
            if left == 0:
                raise reason or Unavailable(
                    f"{file.name} of {self.listing.repo} could not be fetched to its end.",
                    cause=f"the Hub ends it after {have:,} of {file.bytes:,} bytes",
                    next_step="Run it again later: it goes on where it has stopped.",
                )
            time.sleep(min(self.pause * 2 ** (ATTEMPTS - left - 1), LONGEST_PAUSE_SECONDS))

    def _stream(self, file: RemoteFile, part: Path, have: int) -> None:
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = dict(build_hf_headers(library_name="forge-mcp"))
        headers["Accept-Encoding"] = "identity"  # else the numbers of bytes are not the file's
        if have:
            headers["Range"] = f"bytes={have}-"
        url = hf_hub_url(self.listing.repo, file.name, revision=self.listing.commit)
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
            if answer.status_code >= 400:
                answer.read()
            hf_raise_for_status(answer)
            # A server that does not know ranges sends the file from its beginning.
            if have and answer.status_code != 206:
                part.unlink()
                have = 0
            with part.open("ab") as target:
                for chunk in answer.iter_bytes():
                    target.write(chunk)
                    have += len(chunk)
                    self.done[file.name] = have
                    with self.lock:
                        self.received += len(chunk)


def _checksum(path: Path, file: RemoteFile) -> str:
    """The checksum by which the Hub knows a file: SHA-256, or Git's SHA-1 of a blob."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _link(blob: Path, name: Path) -> None:
    """The way huggingface_hub keeps its cache: a relative link from the snapshot to the blob."""
    name.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, name.parent)
    if not (name.is_symlink() and str(name.readlink()) == target):
        name.unlink(missing_ok=True)
        name.symlink_to(target)


def _may_pass(error: Exception) -> bool:
    """Whether the same may work in a moment: a broken connection, or a fault of the server."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 500, 502, 503, 504)
    return isinstance(error, httpx2.TransportError)


def _in_words(error: Exception, repo: str) -> ForgeError:
    """Whatever huggingface_hub or the network raised."""
    import httpx2
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    again = "Run it again later: it goes on where it has stopped."
    if isinstance(error, GatedRepoError):
        return NotFound(
            f"{repo} is gated: the Hub gives its files only to who has accepted its license.",
            cause=_first_line(error),
            next_step=f"Accept it at {ENDPOINT}/{repo}, {LOGIN}, and pull again; or pull an "
            "ungated copy, e.g. the 4-bit one of mlx-community.",
        )
    if isinstance(error, HFValidationError):
        return NotFound(
            f"'{repo}' is no name of a repository on the Hub.",
            cause=_first_line(error),
            next_step="Give owner/name, as in the address of its page.",
        )
    if isinstance(error, HfHubHTTPError):
        return _refused(error, repo, again)
    if isinstance(error, httpx2.TransportError):
        return Unavailable(
            f"The Hub ({ENDPOINT}) cannot be reached.",
            cause=f"{type(error).__name__}: {_first_line(error)}",
            next_step=f"Check the network (and HTTPS_PROXY, HF_ENDPOINT where they are used). "
            f"{again}",
        )
    if isinstance(error, OSError):
        said = from_os_error(error, f"fetch {repo}")
        if isinstance(said, OutOfSpace):
            said.next_step = (
                "Free some space, or point HF_HOME at a larger disk, and pull again: it goes on "
                "where it has stopped."
            )
        return said
    return ForgeError(
        f"Could not fetch {repo}.",
        cause=f"{type(error).__name__}: {_first_line(error)}",
        next_step="Run it again; if it fails again, report it with the cause.",
    )


def _refused(error: Any, repo: str, again: str) -> ForgeError:
    """An HTTP status of 400 and more."""
    status = error.response.status_code
    cause = f"the Hub answered {status}: {_first_line(error)}"
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        return Unavailable(
            "The Hub limits how often it is asked.",
            cause=cause,
            next_step=f"Wait {wait + ' seconds' if wait else 'some minutes'} and pull again; who "
            f"is known to it may ask more: {LOGIN}.",
        )
    if status >= 500 or status == 408:
        return Unavailable(
            f"The Hub has a fault and does not give {repo}.", cause=cause, next_step=again
        )
    if status in (401, 404):
        return NotFound(
            f"There is no repository {repo} on the Hub, or it is private.",
            cause=cause,
            next_step=f"Check the name; where it is private, {LOGIN} first. A token that is not "
            "valid any more gives the same answer.",
        )
    return NotFound(
        f"The Hub does not give {repo} to this user.",
        cause=cause,
        next_step=f"Look at its page whether it is open to you, and {LOGIN}.",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
