"""Who may write: claims, dead owners, reused process ids, foreign machines, late writers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nullarm.errors import IntegrityError, LeaseLost
from nullarm.store import lease as module
from nullarm.store.atomic import make_directory
from nullarm.store.files import write_json
from nullarm.store.lease import BEAT_TIMEOUT_S, Leases, Owner, beat, cell_lock, fenced, read_lease, this_process
from nullarm.store.paths import CellPaths
from support.processes import eventually


@pytest.fixture
def paths(tmp_path: Path) -> CellPaths:
    made = CellPaths(tmp_path / "cell")
    make_directory(made.root)
    return made


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another living process."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    return module._owner(process.pid)


def test_the_first_claim_is_attempt_one_and_each_further_one_more(paths: CellPaths) -> None:
    leases = Leases()
    for attempt in (1, 2, 3):
        lease = leases.claim(paths)
        assert lease is not None
        assert lease.attempt == attempt
        leases.release(paths)


def test_nobody_claims_a_cell_whose_owner_lives(paths: CellPaths, other: subprocess.Popen[bytes]) -> None:
    assert Leases(owner_of(other)).claim(paths) is not None
    assert Leases().claim(paths) is None
    held = read_lease(paths)
    assert held is not None
    assert (held.attempt, held.owner) == (1, owner_of(other))


def test_a_dead_owner_loses_its_cell(paths: CellPaths, other: subprocess.Popen[bytes]) -> None:
    Leases(owner_of(other)).claim(paths)
    other.kill()
    other.wait()
    lease = Leases().claim(paths)
    assert lease is not None
    assert lease.attempt == 2


def test_an_owner_that_nobody_waited_for_is_dead(paths: CellPaths, other: subprocess.Popen[bytes]) -> None:
    Leases(owner_of(other)).claim(paths)
    other.kill()
    eventually(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE, "the process to become a zombie")
    assert Leases().claim(paths) is not None


def test_a_reused_process_id_is_another_owner(paths: CellPaths) -> None:
    me = this_process()
    Leases(replace(me, started=me.started - 1)).claim(paths)
    assert Leases().claim(paths) is not None


def test_a_machine_that_was_restarted_has_no_old_owners(paths: CellPaths) -> None:
    Leases(replace(this_process(), boot="an earlier boot")).claim(paths)
    assert Leases().claim(paths) is not None


def test_a_foreign_owner_lives_while_its_beat_moves(paths: CellPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    foreign = replace(this_process(), host="elsewhere")
    assert foreign.alive() is None
    Leases(foreign).claim(paths)
    here = Leases()
    for _ in range(5):
        assert here.claim(paths) is None
        now[0] += BEAT_TIMEOUT_S * 0.9
        beat(paths, 1)
    assert here.claim(paths) is None
    now[0] += BEAT_TIMEOUT_S * 0.99
    assert here.claim(paths) is None
    now[0] += BEAT_TIMEOUT_S * 0.02
    lease = here.claim(paths)
    assert lease is not None
    assert lease.attempt == 2


def test_a_look_at_another_attempt_starts_the_clock_anew(paths: CellPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    foreign = Leases(replace(this_process(), host="elsewhere"))
    here = Leases()
    foreign.claim(paths)
    assert here.claim(paths) is None
    now[0] += BEAT_TIMEOUT_S * 2
    foreign.release(paths)
    foreign.claim(paths)
    assert here.claim(paths) is None


def test_two_claimers_at_the_same_moment_get_two_attempts_at_most_one_alive(paths: CellPaths) -> None:
    """Sixteen threads, each a foreign living owner: exactly one wins."""
    won: list[int] = []
    start = threading.Barrier(16)

    def claim(number: int) -> None:
        leases = Leases(replace(this_process(), host=f"host-{number}"))
        start.wait()
        if (lease := leases.claim(paths)) is not None:
            won.append(lease.attempt)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]


def test_a_late_writer_is_refused(paths: CellPaths) -> None:
    leases = Leases()
    leases.claim(paths)
    leases.release(paths)
    with fenced(paths, 1):
        pass  # released, and nobody else has claimed it: its writes are still good
    leases.claim(paths)
    with (
        pytest.raises(LeaseLost, match="attempt 1 of cell cell may not write: attempt 2 owns the cell"),
        fenced(paths, 1),
    ):
        raise AssertionError("the commit went on")
    with pytest.raises(LeaseLost, match="may not write"):
        beat(paths, 1)


def test_a_cell_that_was_never_claimed_takes_no_writes(paths: CellPaths) -> None:
    with pytest.raises(LeaseLost, match="attempt none owns the cell"), fenced(paths, 1):
        raise AssertionError("the commit went on")


def test_a_beat_keeps_everything_else(paths: CellPaths) -> None:
    Leases().claim(paths)
    before = read_lease(paths)
    assert before is not None
    beat(paths, 1)
    beat(paths, 1)
    assert read_lease(paths) == replace(before, beat=2)


def test_releasing_what_was_lost_leaves_it_to_its_owner(paths: CellPaths) -> None:
    first = Leases(replace(this_process(), boot="earlier"))
    first.claim(paths)
    Leases().claim(paths)
    first.release(paths)
    held = read_lease(paths)
    assert held is not None
    assert (held.attempt, held.released) == (2, False)


def test_everything_claimed_is_released_at_the_end(tmp_path: Path) -> None:
    leases, cells = Leases(), [CellPaths(tmp_path / name) for name in "abc"]
    for cell in cells:
        make_directory(cell.root)
        leases.claim(cell)
    leases.release(cells[0])
    Leases().claim(cells[0])
    leases.release_all()
    leases.release_all()
    assert [found.released for cell in cells if (found := read_lease(cell))] == [False, True, True]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"attempt": "x", "owner": {}, "beat": 0}', b"\0" * 40])
def test_a_damaged_lease_is_an_error_not_a_first_attempt(paths: CellPaths, damage: bytes) -> None:
    Leases().claim(paths)
    paths.lease.write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"lease\.json is damaged; next: make sure that no run is at work here"):
        Leases().claim(paths)
    with pytest.raises(IntegrityError, match="damaged"), fenced(paths, 1):
        raise AssertionError("the commit went on")


def test_the_lock_shuts_out_other_processes(paths: CellPaths) -> None:
    command = f"import fcntl, sys; fcntl.flock(open({str(paths.lock)!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with cell_lock(paths):
        blocked = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in blocked.stderr
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_an_owner_without_a_process_table_is_asked_of_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: no `/proc`."""
    monkeypatch.setattr(Path, "read_text", _raise_not_found)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert module._started(os.getpid()) == psutil.Process().create_time()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: psutil.Process(gone.pid).status() == psutil.STATUS_ZOMBIE, "the process to end")
    assert module._started(gone.pid) is None
    gone.wait()
    assert module._started(gone.pid) is None


def _raise_not_found(self: Path, *_: object, **__: object) -> str:
    raise FileNotFoundError(self)


def test_a_process_that_is_gone_owns_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(ProcessLookupError, match=f"no process {gone.pid}"):
        module._owner(gone.pid)


def test_a_lease_file_of_a_later_version_with_more_in_it_is_not_guessed_at(paths: CellPaths) -> None:
    Leases().claim(paths)
    held = read_lease(paths)
    assert held is not None
    write_json(paths.lease, {"attempt": 1, "owner": {"host": "x", "new": 1}, "beat": 0, "released": True})
    with pytest.raises(IntegrityError, match="damaged"):
        read_lease(paths)
