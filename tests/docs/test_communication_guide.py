"""Tables of the communication guide against the code."""

from __future__ import annotations

import re
from dataclasses import fields

from pages import ROOT, text_of

from nullarm.protocols.kv_communication.budget.curve import Row
from nullarm.protocols.kv_communication.parameters import Channel

GUIDE = text_of(ROOT / "docs/guide/kv-communication.md")


def test_the_keys_of_a_channel_are_those_of_the_code() -> None:
    section = GUIDE.split("### Channels")[1].split("###")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(Channel.model_fields)


def test_the_columns_of_the_budget_curve_are_those_of_the_code() -> None:
    section = GUIDE.split("budget_curve.csv")[-1]
    named = set(re.findall(r"`(\w+)`", section))
    assert {field.name for field in fields(Row)} <= named
