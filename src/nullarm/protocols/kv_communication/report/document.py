"""The report: what was compared, budget curves, the grid with its intervals, time, text, calibration, errors."""

from __future__ import annotations

from nullarm.analysis import Analysis, obstacle
from nullarm.protocols.findings import document_of
from nullarm.protocols.kv_communication.budget.evaluations import evaluations, usable
from nullarm.protocols.kv_communication.budget.points import curve_points
from nullarm.protocols.kv_communication.report.caches_against_text import caches_against_text
from nullarm.protocols.kv_communication.report.calibration import calibration
from nullarm.protocols.kv_communication.report.curves import curves
from nullarm.protocols.kv_communication.report.errors import errors
from nullarm.protocols.kv_communication.report.grid import grid
from nullarm.protocols.kv_communication.report.latency import latency
from nullarm.protocols.kv_communication.report.overview import overview
from nullarm.report import Document, Section
from nullarm.store.study_store import StudyStore


def document(store: StudyStore, analysis: Analysis) -> Document:
    """Verdicts first, then what they rest on."""
    declared = store.lock.study.analysis
    found = evaluations(store)
    good = usable(found)
    points = curve_points(good, declared.seed)
    why_not = obstacle(store)
    sections = [
        Section("What was compared", tuple(overview(store, found))),
        Section("Bytes against accuracy", tuple(curves(points))),
        Section("Every arm against its references", tuple(grid(good, declared, why_not))),
        Section("Where the time goes", tuple(latency(good))),
        Section("Caches against text", tuple(caches_against_text(points, declared, why_not))),
        Section("What quantisation does to the caches", tuple(calibration(store))),
        Section("Errors", tuple(errors(found))),
    ]
    return document_of(store, analysis, [section for section in sections if section.blocks])
