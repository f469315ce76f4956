"""What channels do with a batch, on the built-in small world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from communication_models import largest_difference, open_fuser, poisoned, prompts, row_of

from nullarm.errors import DatasetError
from nullarm.models.load import load_causal_lm
from nullarm.models.tasks.base import Item
from nullarm.protocols.kv_communication.cells import evaluate
from nullarm.protocols.kv_communication.channels import by_cache, participants
from nullarm.protocols.kv_communication.channels.alone import Alone
from nullarm.protocols.kv_communication.channels.asked import Answerer, Answering, Asked
from nullarm.protocols.kv_communication.channels.by_cache import ByCache, Sender, Wire
from nullarm.protocols.kv_communication.channels.by_text import ByText
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.channels.selecting import Selecting
from nullarm.protocols.kv_communication.communication.exchange import exchanges
from nullarm.protocols.kv_communication.communication.fuse import Contribution, source_index
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.communication.rendering import all_rendered
from nullarm.protocols.kv_communication.fuser import C2CProjector
from nullarm.protocols.kv_communication.parameters import Order, Text
from nullarm.protocols.kv_communication.planning import answered_task
from nullarm.protocols.kv_communication.selection.request import encode_request
from nullarm.protocols.kv_communication.wire.codec import NAMED

TASK = answered_task({"kind": "world_relations"})
ITEMS = list(TASK.items("test")[:6])
BY_LIKELIHOOD = Answering(TASK, by_likelihood=True, max_new_tokens=64, chat_template=False, answer_prefix="")
BY_GENERATION = replace(BY_LIKELIHOOD, by_likelihood=False, max_new_tokens=3)


@pytest.fixture
def receiver() -> Participant:
    return Participant(*load_causal_lm("builtin:world"))


@pytest.fixture
def sharer() -> Participant:
    return Participant(*load_causal_lm("builtin:world-chat"))


def channel(receiver: Participant, sharer: Participant, order: Order = "front", **options: Any) -> ByCache:
    """Half of the tokens through an open fuser."""
    answering = options.pop("answering", BY_LIKELIHOOD)
    sender = Sender(sharer, open_fuser(sharer.model, receiver.model))
    selecting = Selecting(order, options.pop("proportion", 0.5), seed=0)
    return ByCache(receiver, (sender,), Wire(NAMED["fp32"]), selecting, answering, **options)


def batch(items: Sequence[Item] = ITEMS) -> list[Asked]:
    return [Asked(item, item) for item in items]


@pytest.mark.parametrize("answering", [BY_LIKELIHOOD, BY_GENERATION])
def test_an_item_whose_logits_are_not_numbers_is_wrong_and_named(receiver: Participant, answering: Answering) -> None:
    rows = [read.ids for read in all_rendered(receiver.tokenizer, [i.prompt for i in ITEMS], chat_template=False)]
    seen = Counter(token for row in rows for token in set(row))
    token = next(token for token in rows[2] if seen[token] == 1)
    with poisoned(receiver.model, token):
        answers = evaluate._forgiving(Alone(receiver, answering), batch())
    words = f"InvalidResult: the receiver's logits are not numbers; got {ITEMS[2].id!r}"
    assert [answer.error for answer in answers] == [words if n == 2 else None for n in range(6)]
    assert not answers[2].correct


def fitting(receiver: Participant, answering: Answering) -> int:
    """Positions that the longest item takes with what is run behind it."""
    found = []
    reads = all_rendered(receiver.tokenizer, [i.prompt for i in ITEMS], chat_template=False)
    for question in answering.questions(receiver, ITEMS, reads):
        new = max(map(len, question.completions)) if answering.by_likelihood else answering.max_new_tokens
        found.append(len(question.prompt.ids) + new - 1)
    return max(found)


@pytest.mark.parametrize("answering", [BY_LIKELIHOOD, BY_GENERATION])
@pytest.mark.parametrize("via", ["receiver", "fuser", "text"])
def test_an_item_must_fit_with_what_is_run_behind_it_and_no_more(
    receiver: Participant, sharer: Participant, answering: Answering, via: str
) -> None:
    made: dict[str, Answerer] = {
        "receiver": Alone(receiver, answering),
        "fuser": channel(receiver, sharer, answering=answering),
        "text": ByText(receiver, sharer, Text(reply="{prompt}", max_new_tokens=1), None, answering),
    }
    most = fitting(receiver, answering)
    receiver.model.config.max_position_embeddings = most
    assert len(made[via].answer(batch())) == 6
    receiver.model.config.max_position_embeddings = most - 1
    words = f"a prompt is longer than the model's context; got '{most} tokens'; valid: {most - 1}"
    with pytest.raises(DatasetError, match=words):
        made[via].answer(batch())


@pytest.mark.parametrize("via", ["fuser", "text"])
def test_an_item_must_fit_the_sharer(receiver: Participant, sharer: Participant, via: str) -> None:
    sharer.model.config.max_position_embeddings = 5
    made: dict[str, Answerer] = {
        "fuser": channel(receiver, sharer),
        "text": ByText(receiver, sharer, Text(max_new_tokens=1), None, BY_LIKELIHOOD),
    }
    with pytest.raises(DatasetError, match=r"longer than the model's context; got '.* tokens'; valid: 5"):
        made[via].answer(batch())


def test_an_item_without_choices_has_no_likeliest(receiver: Participant) -> None:
    bare = [replace(ITEMS[0], choices=())]
    with pytest.raises(DatasetError, match=r"no choices; got .*; valid: `answer_by: generation`"):
        Alone(receiver, BY_LIKELIHOOD).answer(batch(bare))


def kept(order: Order, sharer: Participant, receiver: Participant, *, damaged: int, read: int) -> list[list[int]]:
    """Places that are sent when the fuser reads one layer of the sharer, and the cache of another is something else."""
    fuser = open_fuser(sharer.model, receiver.model)
    for entries in fuser.layers.values():
        for layer, projector in entries:
            made = fuser.projectors[projector]
            assert isinstance(made, C2CProjector)
            for half in ("key", "value"):
                made.gate_logit(half).data.fill_(1.0 if layer == read else -1.0)
    assert {stream.layer for stream in fuser.streams()} == {read}
    selecting = Selecting(order, 0.5, seed=0)
    reads = exchanges([i.prompt for i in ITEMS], receiver.tokenizer, [sharer.tokenizer])
    heard = [e.sharers[0] for e in reads]
    found = selecting.sharer_reads(sharer, [h.ids for h in heard], fuser)
    if found.queries is not None:
        assert found.queries.by_layer.keys() == {read}
    found.cache.kv[damaged] = (found.cache.kv[damaged][0].flip(2), found.cache.kv[damaged][1].flip(2))
    whole = Contribution(fuser, dict(enumerate(found.cache.kv)), source_index(heard, found.cache.mask))
    return [h.wanted for h in selecting.kept(ITEMS, heard, None, found, whole)]


@pytest.mark.parametrize("order", ["key_norm", "value_norm", "expected_attention"])
def test_scores_look_at_no_layer_that_the_fuser_does_not_read(
    receiver: Participant, sharer: Participant, order: Order
) -> None:
    intact = kept(order, sharer, receiver, damaged=0, read=1)
    assert kept(order, sharer, receiver, damaged=2, read=1) == intact
    assert kept(order, sharer, receiver, damaged=1, read=1) != intact


@pytest.mark.parametrize("order", ["key_norm", "value_norm", "expected_attention"])
def test_a_fuser_that_reads_nothing_prefers_no_token(receiver: Participant, sharer: Participant, order: Order) -> None:
    shut = Sender(sharer, open_fuser(sharer.model, receiver.model, gates=-1.0))
    made = replace(channel(receiver, sharer, order), senders=(shut,))
    alone = Alone(receiver, BY_LIKELIHOOD).answer(batch())
    for closed, own in zip(made.answer(batch()), alone, strict=True):
        assert closed.log_likelihood == pytest.approx(own.log_likelihood, abs=1e-5)


def test_the_sharer_sends_what_the_bytes_of_the_request_ask_for(
    receiver: Participant, sharer: Participant, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = channel(receiver, sharer, "two_round")
    assert min(int(a.counts["sent_tokens"] or 0) for a in made.answer(batch())) > 1
    monkeypatch.setattr(by_cache, "encode_request", lambda places, tokens: encode_request(places[:1], tokens))
    answers = made.answer(batch())
    assert [a.counts["sent_tokens"] for a in answers] == [1] * 6
    assert [a.counts["formula_bytes"] for a in answers] == [a.counts["message_bytes"] for a in answers]


def passes(receiver: Participant, made: Answerer) -> tuple[int, set[str]]:
    """Forward passes of the receiver, and the steps that took time."""
    ran: list[int] = []
    with receiver.model.model.register_forward_hook(lambda *_: ran.append(1)):
        answers = made.answer(batch(ITEMS[:1]))
    return len(ran), set(answers[0].seconds)


def test_in_legacy_fusion_the_receiver_reads_once_unless_it_is_asked_first(
    receiver: Participant, sharer: Participant
) -> None:
    whole, _ = passes(receiver, channel(receiver, sharer, proportion=1.0))
    legacy, steps = passes(receiver, channel(receiver, sharer, proportion=1.0, legacy_fusion=True))
    assert whole == legacy
    assert "fuse_s" not in steps
    assert "receiver_s" in steps
    sections, _ = passes(receiver, channel(receiver, sharer, "front", legacy_fusion=True))
    assert sections == legacy + 1  # the fused half, and the other
    asking, _ = passes(receiver, channel(receiver, sharer, "two_round", legacy_fusion=True))
    assert asking >= sections + 1


def test_the_receiver_asks_by_the_attention_of_its_prompts_last_token() -> None:
    model, tokenizer = load_causal_lm("random:tiny-llama", model_kwargs={"attn_implementation": "eager"})
    rows = prompts(9, 5, 12)
    found = Selecting("two_round", 0.5, seed=0).receiver_reads(Participant(model, tokenizer), rows)
    prefix = prefill(model, [row[:-1] for row in rows])
    assert found.asks is not None
    assert found.asks.shape == prefix.mask.shape
    for n, row in enumerate(rows):
        assert largest_difference(row_of(found.cache, n), row_of(prefix, n)) < 1e-5
        with torch.no_grad():
            attentions = model(input_ids=torch.tensor([row]), output_attentions=True).attentions
        paid = torch.stack([layer[0, :, -1].mean(0) for layer in attentions]).mean(0) * len(row)
        torch.testing.assert_close(found.asks[n, -len(row) + 1 :], paid[:-1], rtol=1e-4, atol=1e-5)


def test_prompts_of_one_token_ask_for_nothing(receiver: Participant) -> None:
    found = Selecting("two_round", 0.5, seed=0).receiver_reads(receiver, [[5], [6]])
    assert not found.cache.mask.any()


@pytest.mark.parametrize("via", ["receiver", "fuser"])
def test_every_model_reads_every_prompt_once(
    receiver: Participant, sharer: Participant, via: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = replace(BY_LIKELIHOOD, chat_template=True)
    for who in (receiver, sharer):
        who.tokenizer.chat_template = sharer.tokenizer.chat_template
    calls: Counter[str] = Counter()
    for name, who in (("receiver", receiver), ("sharer", sharer)):
        rendering = who.tokenizer.apply_chat_template

        def counted(*args: Any, name: str = name, rendering: Any = rendering, **options: Any) -> Any:
            calls[name] += 1
            return rendering(*args, **options)

        monkeypatch.setattr(who.tokenizer, "apply_chat_template", counted)
    made = {"receiver": Alone(receiver, answering), "fuser": channel(receiver, sharer, answering=answering)}[via]
    assert len(made.answer(batch())) == 6
    assert calls == ({"receiver": 7} if via == "receiver" else {"receiver": 7, "sharer": 7})  # and once the marker


@pytest.mark.parametrize(("rank", "devices", "chosen"), [(None, 4, 0), ("3", 4, 3), ("3", 1, 0)])
def test_each_process_of_a_machine_has_a_device_of_its_own(
    rank: str | None, devices: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert participants.device() == f"cuda:{chosen}"
    assert current == [chosen]
