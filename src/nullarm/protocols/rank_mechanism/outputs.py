"""The runbook's files under `output/`, written from what the store holds, and its closing block."""

from __future__ import annotations

from typing import Any

from nullarm.analysis import Analysis
from nullarm.protocols.rank_mechanism.aggregate import aggregated_results
from nullarm.protocols.rank_mechanism.archive import write_archive
from nullarm.protocols.rank_mechanism.bench_json import bench
from nullarm.protocols.rank_mechanism.bench_markdown import bench_markdown
from nullarm.protocols.rank_mechanism.closing import closing_block
from nullarm.protocols.rank_mechanism.mechanism_json import mechanism_analysis
from nullarm.protocols.rank_mechanism.seed_results import SeedResults, read_results
from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.files import encode_json
from nullarm.store.study_store import StudyStore

ARCHIVE = "mechanism_test_results"


def write_outputs(store: StudyStore, analysis: Analysis) -> str:
    """Write `seed_<s>/bench.json`, the two summaries, `bench.md` and the results tarball; return the closing block.

    An unfinished, undertrained or smoke study is written as well: what is missing is null, and `status` says why.

    Args:
        store: The study directory.
        analysis: Its judged contrasts.

    Raises:
        IntegrityError: An artefact is not what its hash says.
        StorageError: The disk is full, read-only or gone.
    """
    study = store.lock.study
    results = read_results(study, store)
    data: dict[str, Any] = {f"seed_{r.seed}/bench.json": bench(study, r) for r in results}
    data["aggregated_results.json"] = aggregated_results(study, results, analysis)
    data["mechanism_analysis.json"] = mechanism_analysis(study, store.plan, results, analysis)
    files = {name: encode_json(value) for name, value in data.items()}
    files["bench.md"] = bench_markdown(study, results, analysis).encode()
    for name, content in files.items():
        make_directory((store.paths.output / name).parent)
        write_bytes(store.paths.output / name, content)
    _remove_other_seeds(store, results)
    write_archive(store.paths.output, ARCHIVE, files, _study_files(store))
    return closing_block(study, results, analysis)


def _study_files(store: StudyStore) -> dict[str, bytes]:
    """What a reader of the tarball needs to judge again: the study, its plan, and every item of every cell."""
    paths = store.paths
    wanted = (paths.lock, paths.plan, paths.manifest, paths.analysis, *sorted(paths.tables.glob("*.parquet")))
    return {f"study/{path.name}": path.read_bytes() for path in wanted if path.exists()}


def _remove_other_seeds(store: StudyStore, results: tuple[SeedResults, ...]) -> None:
    """A seed that was taken out of the study must not be read as one of its results."""
    ours = {f"seed_{r.seed}" for r in results}
    for path in store.paths.output.glob("seed_*/bench.json"):
        if path.parent.name not in ours:
            path.unlink()
