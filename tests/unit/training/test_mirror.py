"""Checkpoints in a real S3 server; a store that hangs or fails is one in memory with the fault put in."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from obstore.store import MemoryStore
from toy_training import Toy, never, stop_after, toy_fit, toy_settings, weights

from nullarm.errors import Preempted, PreflightError, UsageError
from nullarm.training import loop, mirror
from nullarm.training.checkpoint import MANIFEST, Checkpoints, TrainState
from nullarm.training.mirror import Mirror, mirror_from_environment
from support.object_store import BUCKET, S3Server, s3_server
from support.processes import PATIENCE_S, eventually

SETTINGS = toy_settings(steps=8, checkpoint_every=2)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server, named by the environment as the mirror."""
    with s3_server(tmp_path / "s3") as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NULLARM_MIRROR", f"s3://{BUCKET}/some/prefix")
        yield running


def train_half(directory: Path) -> None:
    """Until after step 5, with checkpoints of steps 2, 4 and 5."""
    with pytest.raises(Preempted):
        toy_fit(directory, Toy(), SETTINGS, should_stop=stop_after(5))


def remote(server: S3Server, name: str, file: str) -> str:
    (found,) = [path for path in server.paths() if path.endswith(f"{name}/{file}")]
    return found


def undisturbed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], dict[str, list[float]]]:
    """Losses and weights of a run that is neither stopped nor mirrored."""
    with monkeypatch.context() as patch:
        patch.delenv("NULLARM_MIRROR")
        model = Toy()
        return toy_fit(directory, model, SETTINGS).losses, weights(model)


def test_a_new_machine_goes_on_and_ends_as_an_undisturbed_run(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_half(tmp_path / "machine-1")
    model = Toy()
    result = toy_fit(tmp_path / "machine-2", model, SETTINGS)
    assert result.resumed_from == 5
    assert (result.losses, weights(model)) == undisturbed(tmp_path / "undisturbed", monkeypatch)
    assert {Path(path).parent.name for path in server.paths()} == {"step-00000006", "step-00000008"}


def test_killed_without_notice_it_goes_on_from_what_was_uploaded(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, __file__, str(tmp_path / "machine-1")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as child:
        eventually(lambda: any(path.endswith(MANIFEST) for path in server.paths()), "a first remote checkpoint")
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    model = Toy()
    result = toy_fit(tmp_path / "machine-2", model, SETTINGS)
    assert result.resumed_from in (2, 4, 6)
    assert (result.losses, weights(model)) == undisturbed(tmp_path / "undisturbed", monkeypatch)


def flip_a_bit(store: Any, path: str) -> None:
    data = bytearray(store.get(path).bytes())
    data[len(data) // 2] ^= 1
    store.put(path, bytes(data))


def truncate(store: Any, path: str) -> None:
    store.put(path, bytes(store.get(path).bytes())[:-3])


def remove(store: Any, path: str) -> None:
    store.delete(path)


@pytest.mark.parametrize("file", ["parameters.safetensors", "optimizer.pt", "progress.json", MANIFEST])
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_a_damaged_remote_checkpoint_is_passed_over(
    tmp_path: Path,
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Any, str], None],
) -> None:
    train_half(tmp_path / "machine-1")
    damage(server.store(), remote(server, "step-00000005", file))
    model = Toy()
    result = toy_fit(tmp_path / "machine-2", model, SETTINGS)
    assert result.resumed_from == 4
    if (damage, file) != (remove, MANIFEST):  # without its manifest it does not exist
        assert [entry.name for entry in result.skipped] == ["remote step-00000005"]
        assert result.skipped[0].reason.startswith(file)
        assert f"skipped remote checkpoint step-00000005: {file}" in caplog.text
    assert (result.losses, weights(model)) == undisturbed(tmp_path / "undisturbed", monkeypatch)


def test_a_local_checkpoint_as_new_is_not_fetched(tmp_path: Path, server: S3Server) -> None:
    train_half(tmp_path / "machine-1")
    flip_a_bit(server.store(), remote(server, "step-00000005", "optimizer.pt"))
    result = toy_fit(tmp_path / "machine-1", Toy(), SETTINGS)
    assert (result.resumed_from, result.skipped) == (5, ())


def test_a_damaged_local_checkpoint_is_replaced_by_its_copy(tmp_path: Path, server: S3Server) -> None:
    train_half(tmp_path / "machine-1")
    (tmp_path / "machine-1" / "step-00000005" / "optimizer.pt").write_bytes(b"")
    assert toy_fit(tmp_path / "machine-1", Toy(), SETTINGS).resumed_from == 5


def test_another_run_finds_nothing(tmp_path: Path, server: S3Server) -> None:
    train_half(tmp_path / "machine-1")
    assert toy_fit(tmp_path / "machine-2", Toy(), SETTINGS, fingerprint="cell-2").resumed_from is None


def test_without_a_server_training_goes_on_and_says_so(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    monkeypatch.setitem(mirror.RETRY, "max_retries", 0)
    model = Toy()
    result = toy_fit(tmp_path / "machine-1", model, SETTINGS)
    assert "the mirror cannot be read, going on with what is here: Generic S3 error" in caplog.text
    assert "step-00000008 was not mirrored: Generic S3 error" in caplog.text
    assert (result.losses, weights(model)) == undisturbed(tmp_path / "undisturbed", monkeypatch)


def test_a_bucket_that_is_not_there_is_said_and_costs_no_training(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NULLARM_MIRROR", "s3://other")
    assert toy_fit(tmp_path, Toy(), SETTINGS).steps == 8
    assert "step-00000008 was not mirrored" in caplog.text


def test_a_server_that_is_away_for_a_while_is_tried_again(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(mirror.RETRY, "max_retries", 30)
    running = mirror_from_environment("cell-1", keep=2)
    assert running is not None
    server.stop()
    with running:
        running.submit(save(tmp_path / "here", 2))
        server.start()
    assert any(path.endswith(f"step-00000002/{MANIFEST}") for path in server.paths())
    assert caplog.text == ""


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(mirror.RETRY, "max_retries", 0)
    monkeypatch.setitem(mirror.CLIENT, "read_timeout", timedelta(seconds=0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert toy_fit(tmp_path, Toy(), SETTINGS).steps == 8
    assert "the mirror cannot be read" in caplog.text
    assert "step-00000008 was not mirrored" in caplog.text


def save(directory: Path, step: int, size: int = 100) -> Path:
    weight = torch.arange(size, dtype=torch.float32) + step
    checkpoints = Checkpoints(directory, fingerprint="cell-1", keep=1)
    return checkpoints.save(TrainState(step, {"weight": weight}, {"state": {}}, {}, {"losses": [0.5] * step}))


def test_large_files_travel_in_pieces(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_DOWNLOAD_BYTES", 1_000_000)
    written = save(tmp_path / "here", 3, size=3_000_000)
    with running(server.store("run")) as uploading:
        uploading.submit(written)
    there = Checkpoints(tmp_path / "there", fingerprint="cell-1", keep=1)
    with running(server.store("run")) as downloading:
        assert downloading.fetch_newer(there) == ()
    for path in written.iterdir():
        assert (tmp_path / "there" / written.name / path.name).read_bytes() == path.read_bytes(), path.name


class Watched:
    """A store in memory that keeps the order of what is done to it, and whose `put` can be held up or fail."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.log: list[tuple[str, str]] = []
        self.entered, self.released = threading.Event(), threading.Event()
        self.released.set()
        self.fails_at = ""

    def put(self, path: str, file: Any, **options: Any) -> object:
        self.entered.set()
        assert self.released.wait(PATIENCE_S), "nobody let the upload go on"
        if self.fails_at and path.endswith(self.fails_at):
            raise OSError(f"refused {path}")
        self.log.append(("put", path))
        return self.inner.put(path, file, **options)

    def delete(self, paths: str | list[str]) -> None:
        self.log += [("delete", path) for path in ([paths] if isinstance(paths, str) else paths)]
        self.inner.delete(paths)

    def names(self) -> list[str]:
        found = {entry["path"].partition("/")[0] for page in self.inner.list() for entry in page}
        return sorted(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def running(store: Any, keep: int = 2) -> Mirror:
    return Mirror(store, keep=keep)


def test_training_does_not_wait_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Watched()
    store.released.clear()
    monkeypatch.setattr(loop, "mirror_from_environment", lambda fingerprint, keep: running(store, keep))
    stored_meanwhile: list[tuple[str, str]] = []

    def on_progress(step: int, loss: float) -> None:
        if step == 3:
            assert store.entered.wait(PATIENCE_S), "the upload of step 2 has begun"
        if step == 8:
            stored_meanwhile.extend(entry for entry in store.log if entry[0] == "put")
            store.released.set()

    assert toy_fit(tmp_path, Toy(), SETTINGS, on_progress=on_progress).steps == 8
    assert stored_meanwhile == [], "eight steps were done while the first upload hung"
    uploaded = {path.partition("/")[0] for action, path in store.log if action == "put"}
    assert {"step-00000002", "step-00000008"} <= uploaded
    assert "step-00000004" not in uploaded, "it was superseded while it waited"


def test_an_upload_outlives_the_local_checkpoint(tmp_path: Path) -> None:
    store = Watched()
    store.released.clear()
    with running(store) as uploading:
        uploading.submit(save(tmp_path / "here", 1))
        assert store.entered.wait(PATIENCE_S)
        shutil.rmtree(tmp_path / "here")
        store.released.set()
    there = Checkpoints(tmp_path / "there", fingerprint="cell-1", keep=1)
    with running(store) as downloading:
        assert downloading.fetch_newer(there) == ()
    assert there.newest_valid_step() == 1


def test_one_that_was_pruned_while_it_waited_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Watched()
    with running(store) as uploading:
        uploading.submit(tmp_path / "step-00000001")
    assert (store.names(), caplog.text) == ([], "")


def test_the_manifest_goes_up_last_and_away_first(tmp_path: Path) -> None:
    store = Watched()
    for step in (1, 2, 3):
        with running(store, keep=1) as uploading:
            uploading.submit(save(tmp_path, step))
    assert store.names() == ["step-00000003"]
    second = [(action, path.partition("/")[2]) for action, path in store.log if path.startswith("step-00000002/")]
    put = [file for action, file in second if action == "put"]
    assert put[-1] == MANIFEST
    assert len(put) == 5
    deleted = [file for action, file in second[second.index(("put", MANIFEST)) :] if action == "delete"]
    assert deleted[0] == MANIFEST
    assert sorted(deleted) == sorted(put)


def test_an_upload_that_stops_half_way_leaves_nothing_to_resume_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Watched()
    with running(store) as uploading:
        uploading.submit(save(tmp_path / "here", 1))
    store.fails_at = "step-00000002/tensors.safetensors"
    with running(store) as uploading:
        uploading.submit(save(tmp_path / "here", 2))
    assert "step-00000002 was not mirrored: refused step-00000002/tensors.safetensors" in caplog.text
    assert store.names() == ["step-00000001", "step-00000002"]
    there = Checkpoints(tmp_path / "there", fingerprint="cell-1", keep=1)
    with running(store) as downloading:
        downloading.fetch_newer(there)
    assert there.newest_valid_step() == 1
    with running(store, keep=1) as uploading:
        uploading.submit(save(tmp_path / "here", 3))
    assert store.names() == ["step-00000003"], "what was left of it is cleared away"


def test_what_is_newer_than_the_one_written_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    """A newer one that is still there was passed over as damaged."""
    store = Watched()
    for step in (5, 2, 3, 4):
        with running(store, keep=2) as uploading:
            uploading.submit(save(tmp_path / str(step), step))
    assert store.names() == ["step-00000003", "step-00000004", "step-00000005"]


def test_the_end_waits_for_a_store_that_hangs_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "CLOSE_TIMEOUT_S", 0.1)
    store = Watched()
    store.released.clear()
    with running(store) as uploading:
        uploading.submit(save(tmp_path, 1))
    assert "gave up on the last upload to the mirror after 0 s" in caplog.text
    assert store.names() == []
    store.released.set()
    eventually(lambda: not uploading._thread.is_alive(), "the end of the upload")


def test_without_the_variable_there_is_no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NULLARM_MIRROR", raising=False)
    assert mirror_from_environment("cell-1", keep=2) is None


@pytest.mark.parametrize("address", ["bucket/prefix", "gs://bucket", "s3://", "s3:///prefix"])
def test_an_address_without_a_bucket_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NULLARM_MIRROR", address)
    with pytest.raises(UsageError) as caught:
        mirror_from_environment("cell-1", keep=2)
    assert "NULLARM_MIRROR names no bucket" in str(caught.value)
    assert "valid: s3://BUCKET or s3://BUCKET/PREFIX" in str(caught.value)


def test_a_missing_client_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLARM_MIRROR", "s3://bucket")
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(PreflightError, match=r"not installed; next: pip install 'nullarm\[s3\]'"):
        mirror_from_environment("cell-1", keep=2)


def train_until_killed(directory: Path) -> None:
    """The first machine: as fast as it can until step 7, where it stays."""
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    asked = stop_after(7)

    def hang_at_step_7() -> bool:
        if asked():
            time.sleep(PATIENCE_S)
        return never()

    toy_fit(directory, Toy(), SETTINGS, should_stop=hang_at_step_7)


if __name__ == "__main__":
    train_until_killed(Path(sys.argv[1]))
