"""The report of a residual study: what was compared, trajectories, maps, hotspots, factorial, tokens, interventions."""

from __future__ import annotations

from nullarm.analysis import Analysis
from nullarm.protocols.findings import document_of
from nullarm.protocols.residual.causal.report import causal_sections
from nullarm.protocols.residual.report.compared import compared
from nullarm.protocols.residual.report.entries import captures, detailed, groups, members
from nullarm.protocols.residual.report.hottest import hottest
from nullarm.protocols.residual.report.layers import exchanged, summary, trajectories
from nullarm.protocols.residual.report.maps import maps
from nullarm.protocols.residual.report.tracked import tracked
from nullarm.report import Document, Section
from nullarm.store.study_store import StudyStore


def document(store: StudyStore, analysis: Analysis) -> Document:
    """Verdicts first, then what they rest on."""
    entries = captures(store)
    drawn = detailed(groups(store.lock.study, entries))
    shown = members(drawn)
    sections = [
        Section("What was compared", tuple(compared(store, entries, drawn))),
        Section("Layer by layer", (*trajectories(shown), *summary(entries))),
        Section("Layer by position", tuple(maps(drawn))),
        Section("Hotspots", tuple(hottest(shown))),
        Section("Embedding, body, unembedding", tuple(exchanged(shown))),
        Section("Tracked tokens", tuple(tracked(shown))),
        *causal_sections(store),
    ]
    return document_of(store, analysis, [section for section in sections if section.blocks])
