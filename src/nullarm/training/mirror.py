"""Checkpoints copied to an object store, so that a new machine goes on where a lost one stopped.

The environment switches it on, and workers inherit it: `NULLARM_MIRROR=s3://BUCKET/PREFIX`, with the client's own
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and `AWS_ENDPOINT_URL`. In the bucket::

    PREFIX/<hash of the run's fingerprint>/step-00000200/<the files of a checkpoint>

`manifest.json` goes up last and is removed first: a remote checkpoint without it does not exist. A store that fails
costs the copy, never the training.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nullarm.errors import IntegrityError, PreflightError, UsageError
from nullarm.training.checkpoint import MANIFEST, Checkpoints, Skipped, step_of

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import ObjectStore

VARIABLE = "NULLARM_MIRROR"
CLOSE_TIMEOUT_S = 300.0
"""How long the end of a run waits for its last upload."""

RETRY: dict[str, Any] = {
    "max_retries": 4,
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=8), "base": 2},
    "retry_timeout": timedelta(seconds=120),
}
"""The client's: server errors, lost connections and timeouts are tried again, refusals are not."""

CLIENT: dict[str, Any] = {"allow_http": True, "timeout": timedelta(days=1), "read_timeout": timedelta(seconds=60)}
"""A large file may take long, as long as something of it arrives."""

_PARALLEL_PIECES = 4
_DOWNLOAD_BYTES = 32 << 20
_log = logging.getLogger(__name__)


def mirror_from_environment(fingerprint: str, *, keep: int) -> Mirror | None:
    """The mirror of the run called `fingerprint`, or None where `NULLARM_MIRROR` is not set.

    Args:
        fingerprint: What the run is; every machine that does the same run finds the same checkpoints.
        keep: Remote checkpoints kept.

    Raises:
        UsageError: `NULLARM_MIRROR` names no bucket.
        PreflightError: The client is not installed.
    """
    address = os.environ.get(VARIABLE, "").rstrip("/")
    if not address:
        return None
    bucket = address.removeprefix("s3://").partition("/")[0]
    if not address.startswith("s3://") or not bucket:
        raise UsageError(f"{VARIABLE} names no bucket", value=address, valid="s3://BUCKET or s3://BUCKET/PREFIX")
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise PreflightError(
            f"{VARIABLE} is set, but the client for S3 is not installed", next_command="pip install 'nullarm[s3]'"
        ) from error
    run = hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
    store = S3Store.from_url(f"{address}/{run}", client_options=CLIENT, retry_config=RETRY)  # type: ignore[arg-type]
    return Mirror(store, keep=keep)


class Mirror:
    """The remote checkpoints of one run; inside `with`, uploads go on beside the training.

    One writer at a time: a run has one main process, and a cell one attempt that holds its lease.

    Args:
        store: Rooted at the run.
        keep: Remote checkpoints kept.
    """

    def __init__(self, store: ObjectStore, *, keep: int) -> None:
        self._store, self._keep = store, keep
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._closing = False
        # A daemon, so that a store that hangs keeps no process alive.
        self._thread = threading.Thread(target=self._work, name="nullarm-mirror", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, checkpoint: Path) -> None:
        """Have a published checkpoint uploaded; it takes the place of one that still waits. Returns at once."""
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify()

    def close(self) -> None:
        """Wait for the last upload, `CLOSE_TIMEOUT_S` at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _log.warning("gave up on the last upload to the mirror after %.0f s", CLOSE_TIMEOUT_S)

    def fetch_newer(self, checkpoints: Checkpoints) -> tuple[Skipped, ...]:
        """Bring the newest undamaged remote checkpoint here, if it is newer than every undamaged one here.

        Returns:
            The remote ones that were passed over, and why.

        Raises:
            StorageError: There is no room for it here.
            ForeignStudyError: It belongs to something else.
            FormatError: A newer nullarm wrote it.
        """
        try:
            remote = _whole(self._objects())
        except Exception as error:
            _log.warning("the mirror cannot be read, going on with what is here: %s", _first_line(error))
            return ()
        skipped: list[Skipped] = []
        here = checkpoints.newest_valid_step()
        for name, paths in remote.items():
            if step_of(name) <= here:
                break
            try:
                checkpoints.adopt(name, partial(self._download, paths))
                break
            except IntegrityError as error:
                _log.warning("skipped remote checkpoint %s: %s", name, error.problem)
                skipped.append(Skipped(f"remote {name}", error.problem))
        return tuple(skipped)

    def _work(self) -> None:
        while (checkpoint := self._next()) is not None:
            try:
                self._upload(checkpoint)
            except Exception as error:  # whatever it is, the training must go on
                _log.warning("%s was not mirrored: %s", checkpoint.name, _first_line(error))

    def _next(self) -> Path | None:
        """The checkpoint to upload, once there is one; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            checkpoint, self._waiting = self._waiting, None
            return checkpoint

    def _upload(self, checkpoint: Path) -> None:
        with ExitStack() as stack:
            try:  # open files stay readable when the checkpoint is pruned here
                files = {path.name: stack.enter_context(open(path, "rb")) for path in checkpoint.iterdir()}
            except FileNotFoundError:  # pruned already; a newer one follows
                return
            self._store.delete(f"{checkpoint.name}/{MANIFEST}")
            for name in sorted(files, key=lambda name: (name == MANIFEST, name)):
                self._store.put(f"{checkpoint.name}/{name}", files[name], max_concurrency=_PARALLEL_PIECES)
        self._prune(step_of(checkpoint.name))

    def _prune(self, written: int) -> None:
        """Remove what is older than the last `keep`, counted from the one just written: newer ones may be damaged."""
        found = self._objects()
        whole = [step_of(name) for name in _whole(found) if step_of(name) <= written]
        oldest_kept = min(whole[: self._keep], default=written)
        for name, paths in found.items():
            if step_of(name) < oldest_kept:
                self._store.delete(f"{name}/{MANIFEST}")
                self._store.delete([path for path in paths if path != f"{name}/{MANIFEST}"])

    def _objects(self) -> dict[str, list[str]]:
        """Paths of the files of every remote checkpoint, those without a manifest included, by its name."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for entry in (entry for page in self._store.list() for entry in page):
            name, _, file = entry["path"].partition("/")
            if step_of(name) >= 0 and file and "/" not in file:
                found[name].append(entry["path"])
        return found

    def _download(self, paths: list[str], directory: Path) -> None:
        for path in paths:
            with open(directory / path.partition("/")[2], "wb") as file:
                for piece in self._pieces(path):
                    file.write(piece)

    def _pieces(self, path: str) -> Iterator[Bytes]:
        """A remote file, piece by piece.

        Raises:
            IntegrityError: It is gone or cut short, or the store has failed.
        """
        try:
            yield from self._store.get(path).stream(_DOWNLOAD_BYTES)
        except Exception as error:
            name = path.partition("/")[2]
            raise IntegrityError(f"{name} cannot be downloaded: {_first_line(error)}") from error


def _whole(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """The checkpoints that have their manifest, newest first."""
    names = sorted((name for name in found if f"{name}/{MANIFEST}" in found[name]), key=step_of, reverse=True)
    return {name: found[name] for name in names}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
