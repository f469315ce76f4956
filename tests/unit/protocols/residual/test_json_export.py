"""Tables → JSON: the source's schema exactly, every number in its place, one record at a time, whole or not at all."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nullarm.errors import IntegrityError, InvalidResult
from nullarm.protocols.residual.export import write as json_export
from nullarm.protocols.residual.export.records import records_of
from nullarm.protocols.residual.export.write import announcement, write_json
from nullarm.protocols.residual.runs import Comparison, Passes, Run, multi_pass, single_pass
from nullarm.protocols.residual.tables import SCALARS, SCALARS_NAME
from nullarm.store.files import sha256_path
from nullarm.store.record import FinishedCell
from support import captures
from support.captures import (
    HOTSPOT,
    TOKENS,
    TRACKED_TOKENS,
    VARIANTS,
    capture_store,
    finish_capture,
    logit,
    scalar,
    shift,
)

SWAPPED = Passes(
    (*single_pass().runs, Run("sft:swapped", "sft", "base", "sft")),
    (*single_pass().comparisons, Comparison("swapped", "base", "sft:swapped")),
)


def capture(root: Path, passes: Passes | None = None, refused: tuple[str, ...] = ()) -> FinishedCell:
    with capture_store(root, passes=passes) as store:
        return finish_capture(store, next(iter(store.plan)), passes=passes, refused=refused)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    return capture(tmp_path_factory.mktemp("single") / "study")


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    return capture(tmp_path_factory.mktemp("multi") / "study", multi_pass())


def read(path: Path) -> list[dict[str, Any]]:
    """As any JSON reader would, and with no NaN among the numbers."""

    def refuse(name: str) -> None:
        pytest.fail(f"{name} in {path}")

    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return found


def top(prompt: int, record: str, layer: int, position: int, sign: int) -> dict[str, list[Any]]:
    found = [shift(prompt, record, layer, position, rank) for rank in range(captures.TOP_K)]
    return {"indices": [token for token, _ in found], "values": [sign * value for _, value in found]}


def pair_position(
    prompt: int, variant: str, pair: str, runs: tuple[str, str], layer: int, position: int
) -> dict[str, Any]:
    """What the source's tool would have written for these numbers."""

    def at(record: str, metric: str) -> float | None:
        return scalar(prompt, variant, record, layer, position, metric)

    left, right = runs
    return {
        "token": TOKENS[prompt][position],
        "top_k_increased": top(prompt, pair, layer, position, 1),
        "top_k_decreased": top(prompt, pair, layer, position, -1),
        "entropy_base": at(left, "entropy"),
        "entropy_sft": at(right, "entropy"),
        "kl_div": at(pair, "kl_div"),
        "tracked_token_logits": {
            str(token): {
                "base": logit(prompt, variant, left, layer, position, token),
                "sft": logit(prompt, variant, right, layer, position, token),
            }
            for token in TRACKED_TOKENS
        },
        "cosine_sim": at(pair, "cosine"),
        "norm_base": at(left, "norm"),
        "norm_sft": at(right, "norm"),
        "norm_diff": at(pair, "norm_diff"),
        "base_cosine_prev": at(left, "cosine_prev"),
        "base_norm_delta": at(left, "norm_delta"),
        "sft_cosine_prev": at(right, "cosine_prev"),
        "sft_norm_delta": at(right, "norm_delta"),
    }


def run_position(prompt: int, variant: str, run: str, layer: int, position: int) -> dict[str, Any]:
    return {
        "token": TOKENS[prompt][position],
        **{
            m: scalar(prompt, variant, run, layer, position, m)
            for m in ("entropy", "norm", "norm_delta", "cosine_prev")
        },
        "top_k_logits": top(prompt, run, layer, position, 1),
        "tracked_token_logits": {
            str(token): logit(prompt, variant, run, layer, position, token) for token in TRACKED_TOKENS
        },
    }


def layers(prompt: int, make: Any) -> dict[str, dict[str, Any]]:
    return {
        str(layer): {str(p): make(layer, p) for p in range(len(TOKENS[prompt]))} for layer in range(captures.BLOCKS)
    }


def prompts() -> Iterator[tuple[int, str]]:
    yield from ((prompt, variant) for prompt in range(len(TOKENS)) for variant in VARIANTS)


OWN = {
    "base": {"embedding_source": "base", "unembedding_source": "base"},
    "sft": {"embedding_source": "sft", "unembedding_source": "sft"},
}


def test_a_single_pass_file_is_what_the_source_writes(single: FinishedCell, tmp_path: Path) -> None:
    (path,) = write_json(single, tmp_path / "out")
    assert path == tmp_path / "out" / "residual_compare_20260102_030405_org_little_Instruct_v1.json"
    assert read(path) == [
        {
            "prompt": f"{variant}: {''.join(TOKENS[prompt])}",
            "tokens": list(TOKENS[prompt]),
            "metadata": {"prompt_idx": prompt, "variant_name": variant, "embedding_variant": "default"},
            "swap_options": OWN,
            "layers": layers(
                prompt,
                lambda layer, at, p=prompt, v=variant: pair_position(p, v, "base-sft", ("base", "sft"), layer, at),
            ),
        }
        for prompt, variant in prompts()
    ]


def test_a_multi_pass_file_is_what_the_source_writes(multi: FinishedCell, tmp_path: Path) -> None:
    path, _ = write_json(multi, tmp_path)
    assert path.name == "multi_pass_20260102_030405_little.json"
    expected = []
    for prompt, variant in prompts():
        metadata = {"prompt_idx": prompt, "variant_name": variant, "embedding_variant": "multi_pass"}
        text = {"prompt": f"{variant}: {''.join(TOKENS[prompt])}", "tokens": list(TOKENS[prompt])}
        runs = [
            {
                "name": name,
                "model": body,
                "embedding_source": embedding,
                "unembedding_source": body,
                "metadata": {**metadata, "run_name": name},
                "layers": layers(
                    prompt, lambda layer, at, p=prompt, v=variant, n=name: run_position(p, v, n, layer, at)
                ),
            }
            for name, body, embedding in (
                ("BB", "base", "base"),
                ("BS", "sft", "base"),
                ("SB", "base", "sft"),
                ("SS", "sft", "sft"),
            )
        ]
        sources = {run["name"]: {k: run[k] for k in ("embedding_source", "unembedding_source")} for run in runs}
        pairs = [
            {
                "name": f"{left}-{right}",
                "base_run": left,
                "sft_run": right,
                **text,
                "metadata": {**metadata, "base_run": left, "sft_run": right, "pair_name": f"{left}-{right}"},
                "swap_options": {"base": sources[left], "sft": sources[right]},
                "layers": layers(
                    prompt,
                    lambda layer, at, p=prompt, v=variant, n=f"{left}-{right}", r=(left, right): pair_position(
                        p, v, n, r, layer, at
                    ),
                ),
            }
            for left, right in (("BB", "BS"), ("BB", "SB"), ("BB", "SS"), ("BS", "SB"), ("BS", "SS"), ("SB", "SS"))
        ]
        top_metadata = {**metadata, "multi_pass": True}
        expected.append({"format_version": 2, **text, "metadata": top_metadata, "runs": runs, "pairwise": pairs})
    assert read(path) == expected


def test_the_meta_file_says_what_was_run(multi: FinishedCell, tmp_path: Path) -> None:
    path, meta_path = write_json(multi, tmp_path)
    meta = json.loads(meta_path.read_text())
    assert meta_path.name == "multi_pass_20260102_030405_little.meta.json"
    assert (meta["file"], meta["sha256"]) == (path.name, sha256_path(path))
    assert meta["models"] == {"base": "org/little", "sft": "org/little-Instruct@v1"}
    assert [run["name"] for run in meta["runs"]] == ["BB", "BS", "SB", "SS"]
    assert meta["counts"] == {"records": 4, "positions": 14, "layers": 2, "runs": 4, "pairwise": 6}
    assert {k: meta[k] for k in ("entry", "lens", "dtype", "top_k", "format_version")} == {
        "entry": "little", "lens": "norm", "dtype": "float32", "top_k": 2, "format_version": 2,
    }  # fmt: skip


def test_a_swap_is_a_record_of_its_own_under_its_name(tmp_path: Path) -> None:
    records = list(records_of(capture(tmp_path, SWAPPED)))
    assert [r["metadata"]["embedding_variant"] for r in records] == ["default", "swapped"] * 4
    assert records[1]["swap_options"] == {
        "base": {"embedding_source": "base", "unembedding_source": "base"},
        "sft": {"embedding_source": "base", "unembedding_source": "sft"},
    }
    assert records[1]["layers"]["1"]["0"] == pair_position(0, "identity", "swapped", ("base", "sft:swapped"), 1, 0)


def test_what_the_source_compares_with_the_layer_below_is_there_from_layer_0_on(single: FinishedCell) -> None:
    first = next(records_of(single))["layers"]["0"]["0"]
    assert None not in (first["base_cosine_prev"], first["base_norm_delta"], first["sft_cosine_prev"])


def test_what_was_not_tracked_or_ranked_is_an_empty_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "TRACKED_TOKENS", {})
    monkeypatch.setattr(captures, "_topk", lambda prompt, passes: iter(()))
    (path,) = write_json(capture(tmp_path / "study"), tmp_path)
    at = read(path)[3]["layers"]["1"]["2"]
    assert at["tracked_token_logits"] == {}
    assert at["top_k_increased"] == at["top_k_decreased"] == {"indices": [], "values": []}
    assert at["kl_div"] == scalar(1, "mirror_halves", "base-sft", 1, 2, "kl_div")


def test_a_prompt_of_more_than_one_row_group_is_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(schema: pa.Schema, rows: Any) -> Any:
        def fill(path: Path) -> None:
            with pq.ParquetWriter(path, schema) as file:
                for prompt in range(len(TOKENS)):
                    file.write_table(pa.Table.from_pylist(list(rows(prompt)), schema), row_group_size=5)

        return fill

    whole = list(records_of(capture(tmp_path / "whole")))
    monkeypatch.setattr(captures, "_filler", narrow)
    assert list(records_of(capture(tmp_path / "narrow"))) == whole


def test_the_line_that_the_batch_tool_looks_for() -> None:
    assert announcement(Path("out/x.json")) == "Wrote comparison JSON to: out/x.json"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("/models/../x y", "models_x_y"),
        ("Qwen/Qwen2.5-0.5B", "Qwen_Qwen2_5_0_5B"),
        ("///", "model"),
        ("a" * 300, "a" * 100),
    ],
)
def test_no_name_leaves_the_directory(
    single: FinishedCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, safe: str
) -> None:
    monkeypatch.setattr(
        FinishedCell, "json", lambda self, artefact: {**captures._capture(single_pass(), name, ()), "sft": name}
    )
    (path,) = write_json(single, tmp_path)
    assert path == tmp_path / f"residual_compare_20260102_030405_{safe}.json"


def test_a_metric_that_could_not_be_measured_is_refused_with_its_reason(tmp_path: Path) -> None:
    finished = capture(tmp_path / "study", refused=("cosine", "norm_diff"))
    with pytest.raises(InvalidResult, match="has no cosine, without which there is no JSON: the widths differ") as told:
        write_json(finished, tmp_path / "out")
    assert "json_export: false" in str(told.value)
    assert not (tmp_path / "out").exists()


def test_the_tables_of_such_a_capture_can_still_be_read(tmp_path: Path) -> None:
    first = next(records_of(capture(tmp_path, refused=("cosine",))))["layers"]["0"]["0"]
    assert first["cosine_sim"] is None
    assert first["kl_div"] == scalar(0, "identity", "base-sft", 0, 0, "kl_div")


def test_a_number_that_is_infinite_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "logit", lambda *place: float("inf"))
    with pytest.raises(
        InvalidResult, match=r"layers\.0\.0\.tracked_token_logits\.3\.base is inf, where a finite number"
    ):
        write_json(capture(tmp_path / "study"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_tables_in_different_orders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_tracked", lambda prompt, passes: iter([
        {"prompt": 1 - prompt, "variant": "identity", "kind": "run", "record": "base", "layer": 0, "position": 0,
         "token_id": 3, "logit": 0.5}]))  # fmt: skip
    with pytest.raises(IntegrityError, match="prompt 0, variant 'identity', is not where it should be"):
        list(records_of(capture(tmp_path)))


def test_row_groups_are_read_when_their_prompts_are_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six row groups, never more than the prompt's own and the next one have been asked for."""
    monkeypatch.setattr(captures, "TOKENS", TOKENS * 3)
    finished = capture(tmp_path)
    asked: list[int] = []
    original = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, index: int, columns: list[str] | None = None) -> pa.Table:
        asked.append(index)
        return original(self, index, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    seen = []
    for record in records_of(finished):
        seen.append(record["metadata"]["prompt_idx"])
        assert max(asked) <= seen[-1] + 1
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(asked) == sorted(4 * list(range(6)))  # four tables, each row group once


def test_one_record_at_a_time_is_in_memory(
    single: FinishedCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(dict[str, Any]):
        """A record whose end can be seen."""

    alive: list[weakref.ref[Watched]] = []

    def watched(finished: FinishedCell) -> Iterator[dict[str, Any]]:
        for record in records_of(finished):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            found = Watched(record)
            alive.append(weakref.ref(found))
            yield found

    monkeypatch.setattr(json_export, "records_of", watched)
    write_json(single, tmp_path)
    assert len(alive) == 4


def test_a_failure_in_the_middle_leaves_what_was_there(
    single: FinishedCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_json(single, tmp_path)
    before = path.read_bytes()

    def broken(finished: FinishedCell) -> Iterator[dict[str, Any]]:
        yield next(records_of(finished))
        raise RuntimeError("in the middle")

    monkeypatch.setattr(json_export, "records_of", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_json(single, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from nullarm.protocols.residual.export import write as json_export
from nullarm.protocols.residual.export import records as json_records
from nullarm.store.cell import finished
from nullarm.store.paths import CellPaths

def killed(cell):
    for index, record in enumerate(json_records.records_of(cell)):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield record

json_export.records_of = killed
json_export.write_json(finished(CellPaths(Path(sys.argv[1]))), Path(sys.argv[2]))
"""


def test_a_kill_in_the_middle_leaves_no_half_file(single: FinishedCell, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, single.paths.root, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.json")) == []
    (path,) = write_json(single, tmp_path)
    assert len(read(path)) == 4


def test_the_hotspot_is_where_it_was_planted(single: FinishedCell) -> None:
    """The builder's own promise, which other tests rest on."""
    table = single.table(SCALARS_NAME)
    assert table.schema.equals(SCALARS)
    kl = table["kl_div"].to_pylist()
    row = table.slice(max(range(len(kl)), key=lambda i: kl[i] or 0.0), 1).to_pylist()[0]
    assert {k: row[k] for k in ("prompt", "variant", "layer", "position")} | {"value": row["kl_div"]} == HOTSPOT
