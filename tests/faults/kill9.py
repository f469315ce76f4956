"""Kill runs of a study with SIGKILL at random instants, resume them, and compare the end with an undisturbed run.

    python tests/faults/kill9.py rehearsal --kills 50
    python tests/faults/kill9.py rank_mechanism_tiny --kills 50 --life 60

A round is one study directory, from nothing to done. Each life of its coordinator is cut short after a random time, one
in four by the death of a worker, which the coordinator survives. Rounds go on until the kills are used up, and each is
checked: the tables, those that cells hand on among them, are byte for byte those of the undisturbed run, every planned
cell has one record and one directory, no item occurs twice, no attempt began more than one chunk that an earlier one
had begun, and nothing runs on after its coordinator. The store is opened after every kill.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from nullarm.store.paths import StudyPaths
from nullarm.store.study_store import StudyStore

PATIENCE_S = 1800.0
"""How long one life may take before it counts as hanging."""
TIMES = ("latency",)
"""Tables of measured seconds, in which no two runs agree."""
WORKER_SHARE = 0.25
"""Share of the kills that hit a worker instead of the coordinator."""


@dataclass
class Tally:
    """What a campaign did, and what it found wrong."""

    coordinators_killed: int = 0
    workers_killed: int = 0
    rounds: int = 0
    attempts: int = 0
    chunks: int = 0
    chunks_redone: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.coordinators_killed + self.workers_killed

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills ({self.coordinators_killed} coordinators, {self.workers_killed} workers)"
            f" over {self.rounds} rounds",
            f"{self.attempts} attempts, {self.chunks} chunks begun, {self.chunks_redone} of them again",
            *(f"FAULT: {fault}" for fault in self.faults or ()),
            "" if self.faults else "every round ended with the tables of the undisturbed run",
        ]
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Campaign:
    """A study, how it is run, and how long its runs live.

    Attributes:
        study: File or name of the study.
        directory: Where the study directories go.
        overrides: `dotted.key=value` settings.
        life_s: The longest life of a coordinator that will be killed, in seconds.
        at_once: Cells at a time.
    """

    study: str
    directory: Path
    overrides: Sequence[str] = ()
    life_s: float = 4.0
    at_once: int = 2

    def undisturbed(self) -> Path:
        """Run the study in peace and return its directory."""
        root = self.directory / "undisturbed"
        with self.start(root) as process:
            code = process.wait(PATIENCE_S)
        if code != 0:
            raise SystemExit(f"the undisturbed run ended with code {code}:\n{log_of(root)}")
        return root

    def start(self, root: Path) -> subprocess.Popen[bytes]:
        """Begin, or go on with, a run in `root`."""
        command = [sys.executable, "-m", "nullarm", "run", self.study, "--dir", str(root)]
        command += ["--at-once", str(self.at_once), "--set", "resources.attempts=100"]
        for override in self.overrides:
            command += ["--set", override]
        with open(log_path(root), "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def run(self, kills: int, seed: int) -> Tally:
        """Kill `kills` times, and check every round."""
        rng, tally = random.Random(seed), Tally()
        undisturbed = self.undisturbed()
        while tally.kills < kills:
            tally.rounds += 1
            root = self.directory / f"round-{tally.rounds}"
            self.round(root, kills, rng, tally)
            tally.faults += [f"round {tally.rounds}: {fault}" for fault in faults_of(root, undisturbed)]
            count(root, tally)
            if tally.faults:
                break
            shutil.rmtree(root)
        return tally

    def round(self, root: Path, kills: int, rng: random.Random, tally: Tally) -> None:
        """One study directory, from nothing to done."""
        while True:
            with self.start(root) as process:
                while tally.kills < kills and process.poll() is None:
                    self._disturb(process, root, rng, tally)
                code = process.wait(PATIENCE_S)
            _wait_for_orphans(root, tally)
            if code == 0:
                return
            if code != -9:
                tally.faults.append(f"round {tally.rounds}: a run ended with code {code}:\n{log_of(root)}")
                return
            if StudyPaths(root).lock.exists():
                StudyStore.open(root).close()

    def _disturb(self, process: subprocess.Popen[bytes], root: Path, rng: random.Random, tally: Tally) -> None:
        deadline = time.monotonic() + rng.uniform(0.0, self.life_s)
        hits_worker = rng.random() < WORKER_SHARE
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is not None:
            return
        workers = list(workers_of(root))
        if hits_worker and workers:
            rng.choice(workers).kill()
            tally.workers_killed += 1
        else:
            process.kill()
            process.wait()
            tally.coordinators_killed += 1


def workers_of(root: Path) -> Iterator[psutil.Process]:
    """Living workers of a study directory."""
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if "nullarm.worker" in command and str(root) in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process


def faults_of(root: Path, undisturbed: Path) -> list[str]:
    """Everything in which a study directory differs from what an undisturbed run leaves."""
    tables = table_faults(StudyPaths(root).tables, StudyPaths(undisturbed).tables)
    return [*tables, *artefact_faults(root, undisturbed), *cell_faults(root)]


def artefact_faults(root: Path, undisturbed: Path) -> list[str]:
    """Tables handed on by cells that are not those of the undisturbed run."""
    mine, theirs = (_artefact_tables(directory) for directory in (root, undisturbed))
    return [f"artefact {key} differs" for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]


def _artefact_tables(root: Path) -> dict[str, str]:
    with StudyStore.open(root) as store:
        done = [found for cell in store.plan if (found := store.finished(cell.id))]
    return {
        f"{found.record.cell_id}/{name}": artefact.sha256
        for found in done
        for name, artefact in found.record.artefacts.items()
        if artefact.file.endswith(".parquet") and name not in TIMES
    }


def table_faults(tables: Path, expected: Path) -> list[str]:
    """Tables that are missing, too many, or not byte for byte as expected."""
    mine, theirs = ({path.name: path.read_bytes() for path in d.glob("*.parquet")} for d in (tables, expected))
    if not theirs:
        return ["there are no tables"]
    return [f"table {name} differs" for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]


def cell_faults(root: Path) -> list[str]:
    """Cells without a record, unplanned ones, items that occur twice, chunks made again too often."""
    faults = []
    with StudyStore.open(root) as store:
        planned = {cell.id for cell in store.plan}
        on_disk = {path.name for path in store.paths.cells.iterdir()}
        records = {cell_id for cell_id in on_disk if store.finished(cell_id)}
    if planned != on_disk or planned != records:
        faults.append(f"{len(planned)} cells planned, {len(on_disk)} directories, {len(records)} records")
    items = StudyPaths(root).tables / "items.parquet"
    if items.exists():
        rows = pq.read_table(items, columns=["cell", "item"]).to_pylist()
        twice = [row for row, times in Counter((row["cell"], row["item"]) for row in rows).items() if times > 1]
        faults += [f"item {item} of cell {cell} occurs twice" for cell, item in twice]
    for cell_id in sorted(planned):
        log = StudyPaths(root).cell(cell_id).log
        worst = max((len(keys) for keys in redone(log.read_text(errors="replace"))), default=0) if log.exists() else 0
        if worst > 1:
            faults.append(f"one attempt at cell {cell_id} began {worst} chunks again")
    return faults


def redone(log: str) -> list[list[str]]:
    """For each attempt of a cell's log, the chunks it began although an earlier attempt had begun them."""
    made: set[str] = set()
    again: list[list[str]] = []
    for attempt in log.split("── attempt ")[1:]:
        keys = [line.removeprefix("chunk ") for line in attempt.splitlines() if line.startswith("chunk ")]
        again.append([key for key in keys if key in made])
        made.update(keys)
    return again


def count(root: Path, tally: Tally) -> None:
    """Add up what the logs of a round tell."""
    for cell in StudyPaths(root).cells.iterdir():
        log = cell / "log.txt"
        text = log.read_text(errors="replace") if log.exists() else ""
        tally.attempts += text.count("── attempt ")
        tally.chunks += sum(line.startswith("chunk ") for line in text.splitlines())
        tally.chunks_redone += sum(map(len, redone(text)))


def log_path(root: Path) -> Path:
    return root.with_name(f"{root.name}.log")


def log_of(root: Path) -> str:
    return log_path(root).read_text(errors="replace")[-4000:]


def _wait_for_orphans(root: Path, tally: Tally) -> None:
    """A worker notices the death of its coordinator by itself."""
    deadline = time.monotonic() + 60.0
    while left := list(workers_of(root)):
        if time.monotonic() > deadline:
            tally.faults.append(f"workers outlived their coordinator: {[process.pid for process in left]}")
            return
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="file or name of a study")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--life", type=float, default=4.0, help="longest life of a run that is killed, in seconds")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dir", type=Path, help="keep the study directories here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nullarm-kill9-") as temporary:
        directory = options.dir or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(options.study, directory.absolute(), options.overrides, options.life, options.at_once)
        tally = campaign.run(options.kills, options.seed)
    print(tally)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
