"""Charts as Plotly figures: one figure per panel, with a legend and a colour scale that the page itself shows."""

from __future__ import annotations

from nullarm.report.charts import Chart, Heatmap, IntervalPlot, PairedPlot
from nullarm.report.citations import Citations
from nullarm.report.figure.heatmap import draw_heatmap
from nullarm.report.figure.interval import draw_intervals
from nullarm.report.figure.paired import draw_paired
from nullarm.report.figure.parts import Figure
from nullarm.report.figure.plot import draw_plot


def draw(chart: Chart, citations: Citations) -> Figure:
    """The figure of any chart."""
    if isinstance(chart, Heatmap):
        return draw_heatmap(chart, citations)
    if isinstance(chart, IntervalPlot):
        return draw_intervals(chart, citations)
    if isinstance(chart, PairedPlot):
        return draw_paired(chart, citations)
    return draw_plot(chart, citations)
