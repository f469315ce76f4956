from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_fusers import RECEIVER, SHARER, cache, fuser, kv, projector, same, sent
from torch import Tensor

from nullarm.errors import AdapterError
from nullarm.protocols.kv_communication.fuser import C2CProjector, Fuser, k_nearest, load_fuser, save_fuser

Format = Literal["safetensors", "pt"]
FORMATS: tuple[Format, Format] = ("safetensors", "pt")
CONFIG = "projector_config.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A fuser of four projectors in the published form."""
    save_fuser(fuser(), tmp_path / "final", format="pt")
    return tmp_path / "final"


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rewrite_tensors(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of projector 0."""
    path = directory / "projector_0.pt"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def bits(made: Fuser) -> dict[str, tuple[torch.dtype, bytes]]:
    """Every number of a fuser, to the bit."""
    return {
        name: (tensor.dtype, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in made.state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path, format: Format, dtype: torch.dtype) -> None:
    made = fuser(layer_map=k_nearest(3, 4, 2)).to(dtype)
    made.set_step(77)
    save_fuser(made, tmp_path, format=format)
    read = load_fuser(tmp_path)
    assert bits(read) == bits(made)
    assert read.layers == made.layers
    assert not read.training
    target = cache(RECEIVER, seed=2)
    assert same(read.fuse(sent(cache(SHARER)), target), made.fuse(sent(cache(SHARER)), target))


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_round_writes_the_same_bytes(tmp_path: Path, format: Format) -> None:
    save_fuser(fuser(), tmp_path / "first", format=format)
    save_fuser(load_fuser(tmp_path / "first"), tmp_path / "second", format=format)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


def test_files_are_those_of_the_published_layout(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {CONFIG, *(f"projector_{i}.{s}" for i in range(4) for s in ("pt", "json"))}
    assert json.loads((saved / CONFIG).read_text()) == {
        "0": {"1": {"0": [[0, 0]], "1": [[0, 1]], "2": [[1, 2]], "3": [[2, 3]]}}
    }
    assert json.loads((saved / "projector_2.json").read_text()) == {
        "class": "C2CProjector",
        "init_args": projector().init_args,
    }
    tensors = torch.load(saved / "projector_2.pt", weights_only=True)
    assert type(tensors) is dict
    assert {name: t.shape for name, t in tensors.items()} == {n: t.shape for n, t in projector().state_dict().items()}


def test_a_published_directory_is_read(tmp_path: Path) -> None:
    """Written by hand: numbers as strings, an OrderedDict of parameters, arguments that leave out defaults."""
    made = {n: projector(seed=n, dtype=torch.bfloat16) for n in (0, 1)}
    for n, one in made.items():
        state = one.state_dict(keep_vars=True)
        torch.save(state, tmp_path / f"projector_{n}.pt")
        args = {"source_dim": 4, "target_dim": 5, "source_num_heads": 2, "target_num_heads": 3, "hidden_dim": 8,
                "intermediate_dim": 12, "dtype": "torch.bfloat16"}  # fmt: skip
        (tmp_path / f"projector_{n}.json").write_text(json.dumps({"class": "C2CProjector", "init_args": args}))
    (tmp_path / CONFIG).write_text(json.dumps({"0": {"1": {"3": [["1", "0"]], "2": [[0, 1]]}}}))
    read = load_fuser(tmp_path)
    assert read.layers == {2: ((0, 1),), 3: ((1, 0),)}
    source, target = kv(SHARER), kv(RECEIVER, seed=2)
    for layer, n in ((3, 0), (2, 1)):
        assert torch.equal(read[layer](source, target)[0], made[n](source, target)[0])
    assert read[3].dtype == torch.bfloat16
    assert read[3].init_args["num_layers"] == 3


def test_safetensors_are_preferred(saved: Path) -> None:
    tensors = {name: torch.zeros_like(t) for name, t in torch.load(saved / "projector_0.pt", weights_only=True).items()}
    save_file(tensors, saved / "projector_0.safetensors")
    assert load_fuser(saved)[0].get_parameter("key_in.weight").abs().sum() == 0
    assert load_fuser(saved)[1].get_parameter("key_in.weight").abs().sum() > 0


def test_the_dtype_can_be_chosen(saved: Path) -> None:
    read = load_fuser(saved, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in read.state_dict().values()} == {torch.bfloat16}
    assert read[0].init_args["dtype"] == "bfloat16"


def test_loading_draws_no_random_number_and_what_is_loaded_can_be_trained(saved: Path) -> None:
    state = torch.get_rng_state()
    read = load_fuser(saved)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in read.parameters())
    assert not any(buffer.is_meta for buffer in read.buffers())


def test_one_of_several_sharers_is_read(saved: Path) -> None:
    rewrite(saved / CONFIG, lambda config: config["0"].update({"2": {"1": [[2, 3], [0, 1]]}}))
    second = load_fuser(saved, sharer=2)
    assert second.layers == {1: ((2, 1), (0, 0))}
    whole = load_fuser(saved)
    assert len(second.projectors) == 2
    for of_second, of_first in ((0, 1), (1, 3)):
        mine, theirs = second.projectors[of_second].state_dict(), whole.projectors[of_first].state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_sharer_is_saved_under_its_number(tmp_path: Path) -> None:
    save_fuser(fuser(), tmp_path, sharer=3)
    assert len(load_fuser(tmp_path, sharer=3)) == 4


# Saving


def test_a_fuser_is_not_overwritten(saved: Path) -> None:
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(AdapterError) as caught:
        save_fuser(fuser(seed=5), saved)
    assert str(caught.value) == f"{saved} has a fuser already; got '{CONFIG}'; next: save to another directory"
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_a_save_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    """Also in the other format, which would be read first."""
    save_fuser(fuser(seed=0), tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(AdapterError, match=f"has no {CONFIG}"):
        load_fuser(tmp_path)
    save_fuser(fuser(seed=1), tmp_path, format="pt")
    assert bits(load_fuser(tmp_path)) == bits(fuser(seed=1))


def test_saving_leaves_the_fuser_as_it_was(tmp_path: Path) -> None:
    made = fuser().train()
    before = bits(made)
    save_fuser(made, tmp_path)
    assert made.training
    assert bits(made) == before
    assert all(parameter.requires_grad for parameter in made.parameters())


# What is wrong with a directory


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_fuser(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"fuser directory {tmp_path / 'nowhere'} does not exist; "
        "next: hf download nics-efc/C2C_Fuser --include '<pair>_Fuser/final/*' --local-dir DIR"
    )


def test_the_directory_above_names_the_one_below(saved: Path) -> None:
    with pytest.raises(AdapterError, match=f"has no {CONFIG}; valid: {saved}; next: hf download"):
        load_fuser(saved.parent)


def test_a_sharer_that_is_not_there(saved: Path) -> None:
    with pytest.raises(AdapterError, match=f"{CONFIG} has no sharer 2; valid: 1$"):
        load_fuser(saved, sharer=2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "the file is unusable; got []; valid: a JSON object"),
        ({"1": {}}, "the receiver's entry is unusable; got 'nothing'; valid: a JSON object"),
        ({"0": {"1": [1]}}, "the entry of sharer 1 is unusable; got [1]; valid: a JSON object"),
        ({"0": {"1": {}}}, "the entry of sharer 1 is unusable; got {}; valid: at least one target layer"),
        ({"0": {"1": {"-1": [[0, 0]]}}}, "a target layer is unusable; got '-1'; valid: a whole number from 0"),
        ({"0": {"1": {"0": []}}}, "target layer 0 is unusable; got []; valid: a list of pairs"),
        ({"0": {"1": {"0": [[0]]}}}, "target layer 0 is unusable; got [[0]]; valid: a list of pairs"),
        ({"0": {"1": {"0": [0, 0]}}}, "target layer 0 is unusable; got [0, 0]; valid: a list of pairs"),
        ({"0": {"1": {"0": [["x", 0]]}}}, "target layer 0: source layer is unusable; got 'x'"),
        ({"0": {"1": {"0": [[0, 1.0]]}}}, "target layer 0: projector is unusable; got 1.0"),
        ({"0": {"1": {"0": [[0, True]]}}}, "target layer 0: projector is unusable; got True"),
        ({"0": {"1": {"0": [[0, "9" * 5000]]}}}, "target layer 0: projector is unusable; got '999"),
    ],
)
def test_a_wrong_configuration_is_refused(saved: Path, config: Any, words: str) -> None:
    (saved / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError) as caught:
        load_fuser(saved)
    assert str(caught.value).startswith(f"{saved / CONFIG}: {words}")


@pytest.mark.parametrize("name", [CONFIG, "projector_1.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(AdapterError, match=f"{name} cannot be read: .*; valid: a JSON file"):
        load_fuser(saved)


def test_a_projector_out_of_range(saved: Path) -> None:
    rewrite(saved / CONFIG, lambda config: config["0"]["1"].update({"0": [[0, 9]]}))
    with pytest.raises(AdapterError) as caught:
        load_fuser(saved)
    present = ", ".join(f"projector_{i}.json" for i in range(4))
    assert str(caught.value).startswith(
        f"{saved} lacks projector_9.json, which {CONFIG} asks for; valid: {present}; next: hf download"
    )


def test_tensors_that_are_not_there(saved: Path) -> None:
    (saved / "projector_3.pt").unlink()
    with pytest.raises(AdapterError, match=r"lacks projector_3.safetensors or projector_3.pt, which"):
        load_fuser(saved)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class": "Replace", "init_args": {}}, "class is unusable; got 'Replace'; valid: C2CProjector"),
        ({"init_args": {}}, "class is unusable; got 'nothing'; valid: C2CProjector"),
        ({"class": "C2CProjector"}, "init_args is unusable; got 'nothing'; valid: a JSON object"),
        ({"class": "C2CProjector", "init_args": {"source_dim": 4}}, "init_args is unusable; got "),
        ({"class": "C2CProjector", "init_args": {"source_dim": 4, "target_dim": 5, "heads": 2}},
         "init_args is unusable; got "),
        ({"class": "C2CProjector", "init_args": {"source_dim": "4", "target_dim": 5}},
         " source_dim of a projector is unusable; got '4'; valid: a whole number from 1"),
        ({"class": "C2CProjector", "init_args": {"source_dim": 4, "target_dim": 5, "hidden_dim": 10**30}},
         "init_args is unusable; got "),
    ],
)  # fmt: skip
def test_a_projector_of_another_kind_is_refused(saved: Path, settings: Any, words: str) -> None:
    (saved / "projector_0.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError) as caught:
        load_fuser(saved)
    assert str(caught.value).startswith(f"{saved / 'projector_0.json'}: {words.lstrip()}")


def test_unknown_and_missing_arguments_are_named(saved: Path) -> None:
    rewrite(saved / "projector_0.json", lambda settings: settings["init_args"].update({"gate_depends_on_input": True}))
    with pytest.raises(AdapterError, match="unexpected keyword argument 'gate_depends_on_input'"):
        load_fuser(saved)
    rewrite(saved / "projector_1.json", lambda settings: settings["init_args"].pop("target_dim"))
    rewrite(saved / "projector_0.json", lambda settings: settings["init_args"].pop("gate_depends_on_input"))
    with pytest.raises(AdapterError, match="missing 1 required positional argument: 'target_dim'"):
        load_fuser(saved)


def test_missing_and_foreign_tensors_are_named(saved: Path) -> None:
    rewrite_tensors(saved, lambda tensors: tensors.pop("key_in.bias"))
    with pytest.raises(AdapterError, match=r"projector_0.pt lacks tensors; got 'key_in.bias'; valid: key_gate_logit, "):
        load_fuser(saved)
    rewrite_tensors(saved, lambda tensors: tensors.update({"key_in.bias": torch.zeros(8), "more": torch.zeros(1)}))
    with pytest.raises(AdapterError, match=r"projector_0.pt has foreign tensors; got 'more'; valid: "):
        load_fuser(saved)


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(3, 7), "(3, 7) torch.float32"),
        (torch.zeros(3, 8, dtype=torch.int8), "(3, 8) torch.int8"),
        (torch.zeros(3, 8).to_sparse(), "(3, 8) torch.float32"),
    ],
)
def test_tensors_that_contradict_the_arguments_are_named(saved: Path, tensor: Tensor, found: str) -> None:
    rewrite_tensors(saved, lambda tensors: tensors.update({"value_scalar_head.weight": tensor}))
    with pytest.raises(AdapterError) as caught:
        load_fuser(saved)
    assert str(caught.value).startswith(
        f"{saved / 'projector_0.pt'}: value_scalar_head.weight does not agree with the arguments in projector_0.json; "
        f"got '{found}'; valid: (3, 8), floating point; next: "
    )


def test_safetensors_are_checked_as_well(tmp_path: Path) -> None:
    save_fuser(fuser(), tmp_path)
    path = tmp_path / "projector_1.safetensors"
    tensors = load_file(path)
    tensors.pop("gate_temperature")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"projector_1.safetensors lacks tensors; got 'gate_temperature'"):
        load_fuser(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "the file is unusable; got 'list'; valid: a dictionary of tensors"),
        ({"key_in.bias": [1.0]}, "'key_in.bias' is unusable; got 'list'; valid: tensors only"),
        ({0: torch.zeros(1)}, "0 is unusable; got 'Tensor'; valid: tensors only"),
    ],
)
def test_a_pt_of_more_than_tensors_is_refused(saved: Path, content: Any, words: str) -> None:
    torch.save(content, saved / "projector_0.pt")
    with pytest.raises(AdapterError) as caught:
        load_fuser(saved)
    assert str(caught.value).startswith(f"{saved / 'projector_0.pt'}: {words}")


class Trap:
    """A pickle that touches a file when it is read."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


def test_code_in_a_pickle_does_not_run(saved: Path, tmp_path: Path) -> None:
    path, sprung = saved / "projector_0.pt", tmp_path / "sprung"
    content = {"key_in.bias": Trap(sprung)}
    pickle.loads(pickle.dumps(content))
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    torch.save(content, path)
    for _ in range(2):
        with pytest.raises(AdapterError, match=r"projector_0.pt is not a readable state dict: .*weights_only=True"):
            load_fuser(saved)
        assert not sprung.exists()
        path.write_bytes(pickle.dumps(content))  # as a bare pickle, next


@pytest.mark.parametrize("format", FORMATS)
def test_files_cut_short_are_refused(tmp_path: Path, format: Format) -> None:
    save_fuser(fuser(), tmp_path, format=format)
    path = tmp_path / f"projector_0.{format}"
    whole = path.read_bytes()
    draw = random.Random(0)
    for length in (0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(10))):
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterError, match=f"projector_0.{format} is not a readable"):
            load_fuser(tmp_path)


def test_a_projector_made_directly_from_its_file_is_the_same(saved: Path) -> None:
    settings = json.loads((saved / "projector_1.json").read_text())
    made = C2CProjector(**settings["init_args"])
    made.load_state_dict(torch.load(saved / "projector_1.pt", weights_only=True))
    source, target = kv(SHARER), kv(RECEIVER, seed=2)
    assert torch.equal(made.eval()(source, target)[1], load_fuser(saved)[1](source, target)[1])
