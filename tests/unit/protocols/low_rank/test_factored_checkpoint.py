from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from factored_models import MODELS, ids, mixed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nullarm.errors import FormatError, IntegrityError, ModelError, StorageError
from nullarm.models.load import load_causal_lm
from nullarm.models.reference import content_id
from nullarm.protocols.low_rank.factored.checkpoint import from_bytes, load_compressed, read, read_for, save, to_bytes
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.factored.install import install, replaced

REF = "random:tiny-qwen2"
CONFIG, TENSORS = "compression.json", "factors.safetensors"


def compressed(ref: str = REF) -> Compressed:
    return mixed(load_causal_lm(ref)[0], ref, rank=5)


def keep(directory: Path, made: Compressed, ref: str = REF) -> Path:
    save(directory, made, model_ref=ref, model_content_id=content_id(ref), provenance={"method": "grc", "rank": 5})
    return directory


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return keep(tmp_path / "arm", compressed())


def tensors_of(made: Compressed) -> dict[Any, tuple[Tensor, ...]]:
    return {
        key: (group.basis, *group.weights) if isinstance(group, Factors) else (group.codes, group.scales)
        for key, group in made.items()
    }


def equal(one: Compressed, other: Compressed) -> bool:
    """To the bit, and of one dtype."""
    a, b = tensors_of(one), tensors_of(other)
    return list(a) == list(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for key in a for x, y in zip(a[key], b[key], strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ref", MODELS)
@torch.no_grad()
def test_a_loaded_model_says_and_generates_exactly_what_the_saved_one_did(ref: str, dtype: str, tmp_path: Path) -> None:
    model, _ = load_causal_lm(ref, dtype=dtype)
    plain = model(ids()).logits
    made = mixed(model, ref, rank=5)
    install(model, made)
    keep(tmp_path, made, ref)
    again, tokenizer = load_compressed(tmp_path, dtype=dtype)
    assert torch.equal(again(ids()).logits, model(ids()).logits)
    assert not torch.equal(again(ids()).logits, plain)
    assert not any(module.training for module in again.modules())
    prompt = tokenizer("The river", return_tensors="pt")
    asked = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = model.generate(**prompt, **asked), again.generate(**prompt, **asked)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


def test_matrices_come_back_to_the_bit(saved: Path, tmp_path: Path) -> None:
    made = compressed()
    found = read(saved)
    assert equal(found.compressed, made)
    assert (found.model_ref, found.model_content_id) == (REF, content_id(REF))
    assert found.provenance == {"method": "grc", "rank": 5}
    rounded = found.compressed[1, ("down",)]
    assert isinstance(rounded, Rounded)
    assert (rounded.bits, rounded.block, rounded.shape) == (4, 32, (32, 64))


def test_half_precision_stays_half(tmp_path: Path) -> None:
    halves: Compressed = {
        key: Factors(group.slots, group.basis.bfloat16(), tuple(weight.half() for weight in group.weights))
        for key, group in compressed().items()
        if isinstance(group, Factors)
    }
    assert equal(read(keep(tmp_path, halves)).compressed, halves)


def test_a_chunk_comes_back_from_its_bytes() -> None:
    made = compressed()
    assert equal(from_bytes(to_bytes(made)), made)
    assert from_bytes(to_bytes({})) == {}
    data = to_bytes(made)
    for wrong in (b"", b"abc", data[:-1], data[:100], b"\xff" * 64):
        with pytest.raises(IntegrityError, match=f"the bytes are no compressed matrices: .*; got {len(wrong)}"):
            from_bytes(wrong)


def test_the_description_says_what_is_there(saved: Path) -> None:
    described = json.loads((saved / CONFIG).read_text())
    assert described["format"] == 1
    assert described["base"] == {"model": REF, "content_id": content_id(REF)}
    assert described["groups"][0] == {"layer": 0, "slots": ["q", "k", "v"], "kind": "factors", "rank": 5}
    assert {"layer": 1, "slots": ["down"], "kind": "rounded", "bits": 4, "block": 32, "shape": [32, 64]} in described[
        "groups"
    ]
    assert "0.q+k+v.basis" in load_file(saved / TENSORS)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, TENSORS]


def test_factors_read_once_serve_a_model_that_is_there(saved: Path) -> None:
    model, _ = load_causal_lm(REF)
    again, _ = load_compressed(saved)
    with torch.no_grad(), replaced(model, read(saved).compressed):
        assert torch.equal(model(ids()).logits, again(ids()).logits)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"nowhere is no compressed model, it lacks {CONFIG}; valid: a directory with"):
        load_compressed(tmp_path / "nowhere")
    (saved / TENSORS).unlink()
    with pytest.raises(ModelError, match=f"arm is no compressed model, it lacks {TENSORS}; .*next: ls "):
        load_compressed(saved)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model, tokenizer = load_causal_lm(REF)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    saved = keep(tmp_path / "arm", compressed(), str(base))
    load_compressed(saved)
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(base)
    with pytest.raises(
        ModelError, match=r"base is another model than the one that .*arm was made from; got 'directory:"
    ):
        load_compressed(saved)


def test_factors_of_another_base_are_not_handed_out(saved: Path) -> None:
    assert equal(read_for(saved, REF, content_id(REF)), compressed())
    words = (
        r"builtin:world is another model than the one that .*arm was made from; got 'other'; valid: random:tiny-qwen2@"
    )
    with pytest.raises(ModelError, match=words):
        read_for(saved, "builtin:world", "other")


MEMORY = """
import sys, torch
from pathlib import Path
from nullarm.protocols.low_rank.factored.checkpoint import read, save
from nullarm.protocols.low_rank.factored.factors import Factors

def most(): return next(1024 * int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))

def factors(n): return Factors(("o",), torch.ones(n, 4096), (torch.ones(4096, n),))

save(sys.argv[1] + "/small", {(0, ("o",)): factors(1)}, model_ref="m", model_content_id="c", provenance={})
read(sys.argv[1] + "/small")
made = {(0, ("o",)): factors(4096)}
before = most()
save(sys.argv[1] + "/large", made, model_ref="m", model_content_id="c", provenance={})
print(most() - before)
made.clear()
found = read(sys.argv[1] + "/large").compressed[0, ("o",)]
assert float(found.basis.sum() + found.weights[0].sum()) == 2 * 4096**2
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is told by Linux")
def test_saving_and_reading_hold_one_copy(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    saving, reading = map(int, done.stdout.split())
    size = 2 * 4096**2 * 4
    assert (tmp_path / "large" / TENSORS).stat().st_size > size
    assert max(saving, reading) < size / 4


def test_everyone_may_read_the_file_who_may_read_its_description(saved: Path) -> None:
    assert (saved / TENSORS).stat().st_mode == (saved / CONFIG).stat().st_mode


def test_what_safetensors_cannot_write_is_a_fault_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StorageError, match=r"cannot write .*factors\.safetensors: I/O error: No space left"):
        keep(tmp_path / "arm", compressed())
    assert list((tmp_path / "arm").iterdir()) == []


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    save(tmp_path, compressed(), model_ref="./gone", model_content_id="directory:0", provenance={})
    with pytest.raises(ModelError, match=r"the model directory is missing; got './gone'"):
        load_compressed(tmp_path)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


def test_a_newer_format_is_refused(saved: Path) -> None:
    rewrite(saved / CONFIG, lambda described: described.update(format=2))
    with pytest.raises(FormatError, match="has an unknown format; got 2; valid: 1; next: update nullarm"):
        load_compressed(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda described: described["groups"].pop(),
            "is damaged: its SHA-256 differs; next: copy the directory again",
        ),
        (lambda described: described["base"].update(content_id="x"), "is damaged: its SHA-256 differs"),
        (lambda described: described.pop("sha256"), "is damaged: its SHA-256 differs"),
        (lambda described: described.pop("format"), "is damaged: it has no format"),
    ],
)
def test_an_altered_description_is_refused(saved: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    rewrite(saved / CONFIG, change)
    with pytest.raises(IntegrityError, match=words):
        load_compressed(saved)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_files_cut_short_are_refused(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    draw = random.Random(0)
    for length in (0, 1, len(whole) - 2, *(draw.randrange(len(whole)) for _ in range(8))):
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(IntegrityError, match=f"{name} (has {length} of {len(whole)} bytes|is (not JSON|damaged))"):
            load_compressed(saved)


def test_one_altered_bit_is_found(saved: Path) -> None:
    data = bytearray((saved / TENSORS).read_bytes())
    data[-1] ^= 1
    (saved / TENSORS).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"factors\.safetensors is damaged: its SHA-256 differs; next: copy"):
        load_compressed(saved)


def test_what_is_there_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(ModelError, match=f"arm has a compressed model already; got '{CONFIG}'; next: save to another"):
        keep(saved, compressed())


def test_a_save_that_was_cut_short_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any) -> None:
        if str(target).endswith(CONFIG):
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="the disk is full"):
            keep(tmp_path, compressed())
    assert [path.name for path in tmp_path.iterdir()] == [TENSORS]
    with pytest.raises(ModelError, match=f"lacks {CONFIG}"):
        load_compressed(tmp_path)
    assert equal(read(keep(tmp_path, compressed())).compressed, compressed())


def test_provenance_that_is_no_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path / "arm", compressed(), model_ref=REF, model_content_id="x", provenance={"error": float("nan")})
    assert not (tmp_path / "arm").exists()
