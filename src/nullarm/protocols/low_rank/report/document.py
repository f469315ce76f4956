"""The report: what each arm is and costs, frontiers, ranks, timing, speculation, the sweep, spectra, tolerances."""

from __future__ import annotations

from nullarm.analysis import Analysis, obstacle
from nullarm.protocols.findings import document_of
from nullarm.protocols.low_rank.report.adaptation import adaptation
from nullarm.protocols.low_rank.report.arms import arms
from nullarm.protocols.low_rank.report.pareto import pareto
from nullarm.protocols.low_rank.report.ranks import ranks
from nullarm.protocols.low_rank.report.sessions import sessions
from nullarm.protocols.low_rank.report.spectra import spectra
from nullarm.protocols.low_rank.report.speculation import speculation
from nullarm.protocols.low_rank.report.sweep import sweep
from nullarm.protocols.low_rank.report.tolerances import tolerances
from nullarm.protocols.low_rank.results import arm_results, speculations
from nullarm.protocols.low_rank.sessions import timing_sessions
from nullarm.report import Document, Section
from nullarm.store.study_store import StudyStore


def document(store: StudyStore, analysis: Analysis) -> Document:
    """Verdicts first, then what they rest on."""
    held = timing_sessions(store)
    results = arm_results(store, held)
    sections = [
        Section("The arms", tuple(arms(store, results))),
        Section("What bytes and speed cost", tuple(pareto(store, results))),
        Section("Ranks by layer", tuple(ranks(store))),
        Section("Timing sessions", tuple(sessions(held, analysis, obstacle(store)))),
        Section("Speculative decoding", tuple(speculation(store, speculations(store, held)))),
        Section("Gauge and online basis", tuple(adaptation(store))),
        Section("One layer at a time", tuple(sweep(store))),
        Section("Spectra", tuple(spectra(store))),
        Section("Tolerances of the source", tuple(tolerances(store, results, held))),
    ]
    return document_of(store, analysis, [section for section in sections if section.blocks])
