"""A timing session of any two arms, outside of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from nullarm.bench.judging import SessionJudgement, judge_same, judge_session
from nullarm.bench.runs import Run, run_table
from nullarm.bench.settings import BenchSettings
from nullarm.protocols.low_rank.speculation.result import Speculation
from nullarm.protocols.low_rank.speculation.session import predictions
from nullarm.protocols.low_rank.timed_arm import TimedArm
from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.files import encode_table, write_json


def side_by_side(
    arms: Mapping[str, TimedArm],
    settings: BenchSettings,
    *,
    margin: float,
    alpha: float,
    dtype: str,
    device: str | None,
    seed: int,
    out: Path | None,
    tell: Callable[[int, int, str], None],
) -> SessionJudgement:
    """Hold a session and judge it. Nothing is timed where both arms are the same.

    Args:
        arms: `treatment` and `control`.
        settings: What the session does.
        margin: δ on the log ratio.
        alpha: Level of the tests.
        dtype: Of both models.
        device: Name of a torch device; the GPU where there is one when None.
        seed: Of the order of blocks and of drawn tokens.
        out: Where `runs.parquet` and `judgement.json` go, and `speculation.json` (`tables.SPECULATION`) where an arm
            speculates; nowhere when None.
        tell: Told how many blocks are done, of how many, and what comes.

    Raises:
        ModelError: A model is missing, unreadable, or another one than its factors were made from.
        UsageError: The prompt with what is written after it is longer than a model's context.
    """
    import torch

    from nullarm.bench.instruments import instruments
    from nullarm.bench.session import Session
    from nullarm.protocols.low_rank.timing import Resident, Subjects, runner_unless_same

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run = runner_unless_same(Subjects(arms, dtype, device, settings, seed))
    if run is None:
        return judge_same(margin=margin, alpha=alpha)
    runs: list[Run] = []
    counts: dict[int, Speculation] = {}
    with instruments(torch.device(device), ours=settings.processes) as looking:
        session = Session(settings, run, looking, rng=np.random.default_rng(seed))
        for block in session.blocks(progress=tell):
            runs += block
            counts |= run.counted(block) if isinstance(run, Resident) else {}
    judged = judge_session(runs, margin=margin, alpha=alpha, settings=settings, seed=seed)
    if out is not None:
        make_directory(out)
        write_bytes(out / "runs.parquet", encode_table(run_table(runs)))
        write_json(out / "judgement.json", judged.to_json())
        if counts:
            told = predictions(runs, counts, plain=arms["control"].as_loaded)
            write_json(out / "speculation.json", told)
    return judged
