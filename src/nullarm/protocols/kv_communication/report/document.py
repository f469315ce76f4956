"""The report: what was compared, budget curves, the grid with its intervals, time, text, calibration, errors."""

from __future__ import annotations

from nullarm.analysis import Analysis
from nullarm.protocols.findings import document_of
from nullarm.protocols.kv_communication.budget.curve import curve_points
from nullarm.protocols.kv_communication.budget.evaluations import evaluations, usable
from nullarm.protocols.kv_communication.report.calibration import calibration
from nullarm.protocols.kv_communication.report.compared import compared
from nullarm.protocols.kv_communication.report.crossover import crossovers
from nullarm.protocols.kv_communication.report.curves import curves
from nullarm.protocols.kv_communication.report.errors import errors
from nullarm.protocols.kv_communication.report.grid import grid
from nullarm.protocols.kv_communication.report.latency import latency
from nullarm.report import Document, Section
from nullarm.store.study_store import StudyStore


def document(store: StudyStore, analysis: Analysis) -> Document:
    """Verdicts first, then what they rest on."""
    declared = store.lock.study.analysis
    found = evaluations(store)
    good = usable(found)
    points = curve_points(good, declared.seed)
    sections = [
        Section("What was compared", tuple(compared(store, found))),
        Section("Bytes against accuracy", tuple(curves(points))),
        Section("Every arm against its references", tuple(grid(good, declared))),
        Section("Where the time goes", tuple(latency(good))),
        Section("Caches against text", tuple(crossovers(points, declared))),
        Section("What quantisation does to the caches", tuple(calibration(store))),
        Section("Errors", tuple(errors(found))),
    ]
    return document_of(store, analysis, [section for section in sections if section.blocks])
