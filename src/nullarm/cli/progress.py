"""Progress on standard error: a live view on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nullarm.runner import RunState

LINE_EVERY_S = 15.0


class ProgressView:
    """Shows `RunState`s as they come."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True) if sys.stderr.isatty() else None
        self._last: tuple[float, int] = (0.0, -1)

    def __enter__(self) -> ProgressView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, state: RunState) -> None:
        """Show one state."""
        if self._live:
            self._live.update(_view(state))
            return
        shown_at, shown_done = self._last
        ended = state.done + state.failed
        if ended != shown_done and (time.monotonic() - shown_at > LINE_EVERY_S or ended == state.total):
            self._last = (time.monotonic(), ended)
            self._console.print(_line(state), highlight=False, soft_wrap=True)


def _line(state: RunState) -> str:
    parts = [f"{state.done}/{state.total} cells done", f"{len(state.running)} running"]
    if state.failed:
        parts.append(f"{state.failed} failed")
    if state.blocked:
        parts.append(f"{state.blocked} blocked")
    if state.eta_s is not None:
        parts.append(f"about {duration(state.eta_s)} left")
    if state.cost:
        parts.append(f"${state.cost:.2f} so far")
    if state.stopping and state.running:
        parts.append("stopping at a safe point, Ctrl-C kills")
    return " · ".join(parts)


def _view(state: RunState) -> Group:
    running = Table.grid(padding=(0, 2))
    for label, note in state.running:
        running.add_row(Text(f"  {label}"), Text(note, style="dim"))
    return Group(Text(_line(state)), ProgressBar(total=max(1, state.total), completed=state.done, width=60), running)


def duration(seconds: float) -> str:
    """A length of time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
