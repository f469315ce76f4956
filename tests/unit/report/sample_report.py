"""Two documents for the tests: one as a rank-mechanism study would make it, one with hostile text in every field."""

from __future__ import annotations

import numpy as np

from nullarm.report import (
    Axis,
    CellRef,
    Code,
    Document,
    Guide,
    Heatmap,
    HeatmapPanel,
    IntervalPlot,
    IntervalRow,
    KeyValues,
    Note,
    Pair,
    PairedPlot,
    Plot,
    PlotPanel,
    Point,
    Section,
    Series,
    Table,
    Text,
    Value,
    VerdictCard,
)

SEEDS = (42, 43, 44, 45, 46)
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
LAYERS = ("layer 0", "layer 1", "layer 2")
SHUFFLES = 5
ARMS = ("audited", "shuffled_1", "shuffled_2", "uniform_matched", "inverse", "type_mean")
ALL_ARMS = ("probe", *ARMS[:1], *(f"shuffled_{k + 1}" for k in range(SHUFFLES)), *ARMS[3:], "replicate")


def cell_id(arm: str, seed: int) -> str:
    digits = np.random.default_rng([seed, *arm.encode()]).integers(0, 16, 20)
    return "".join(f"{digit:x}" for digit in digits)


def rank_maps() -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    rng = np.random.default_rng(7)
    audited = np.array([[8, 4, 16, 8, 4, 4, 16], [4, 2, 8, 8, 2, 2, 8], [2, 1, 4, 4, 1, 1, 32]])
    strata = [[0, 1, 2, 3], [4, 5], [6]]

    def shuffled() -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        out = audited.copy()
        for columns in strata:
            out[:, columns] = rng.permutation(audited[:, columns].ravel()).reshape(3, len(columns))
        return out

    by_type = np.broadcast_to(np.array([4, 2, 8, 8, 2, 2, 16]), audited.shape)
    uniform = np.full_like(audited, 6)
    return dict(zip(ARMS, (audited, shuffled(), shuffled(), uniform, audited[::-1], by_type), strict=True))


def accuracies() -> dict[tuple[str, int], float]:
    rng = np.random.default_rng(11)
    base = {"probe": 0.712, "audited": 0.694, "replicate": 0.691, "uniform_matched": 0.668, "inverse": 0.641}
    values = {}
    for seed in SEEDS:
        shift = rng.normal(0, 0.012)
        for arm in ALL_ARMS:
            values[arm, seed] = round(float(base.get(arm, 0.663) + shift + rng.normal(0, 0.006)) * 200) / 200
    return values


def sample() -> Document:
    cells = tuple(
        CellRef(cell_id(arm, seed), f"retrain · {arm} · seed {seed}", "ok", f"cells/{cell_id(arm, seed)}/record.json")
        for seed in SEEDS
        for arm in ALL_ARMS
    )
    return Document(
        title="rank_mechanism_tiny",
        question="Do audit-guided LoRA ranks beat the same ranks shuffled over the modules?",
        subtitle="Protocol rank_mechanism 1 · 3 layers, 21 modules · 5 seeds · analysis declared before the run",
        verdicts=_verdicts(),
        sections=(
            Section("How far apart the arms are", (_contrasts(), _paired(), _scores())),
            Section("Where the ranks went", (_explanation(), _rank_maps(), _residual_map())),
            Section("What the audit saw", (_spectra(), _energy(), _pareto(), _trajectories())),
            Section("Provenance", (*_provenance(), _closing())),
        ),
        cells=cells,
    )


def _cells(*arms: str) -> tuple[str, ...]:
    return tuple(cell_id(arm, seed) for seed in SEEDS for arm in arms)


def _shuffles() -> tuple[str, ...]:
    return tuple(f"shuffled_{k + 1}" for k in range(SHUFFLES))


def _verdicts() -> tuple[VerdictCard, ...]:
    return (
        VerdictCard(
            name="Placement: audited − mean of its shuffles, accuracy on test",
            verdict="CONFIRMED",
            reason="Audited ranks beat their own shuffles in all five seeds, by three times the margin (p = 0.0003).",
            estimate=0.0312,
            interval=(0.0214, 0.0409),
            level=0.90,
            unit="accuracy",
            test="Within-seed randomisation, exact, 7,776 arrangements; interval by two-way (seed, item) bootstrap",
            p_value=0.000129,
            p_adjusted=0.000258,
            n=5,
            n_unit="seeds × 200 items, 5 shuffles each",
            margin=0.01,
            minimum_detectable_effect=0.0145,
            cells=_cells("audited", *_shuffles()),
            primary=True,
        ),
        VerdictCard(
            name="Compression: audited is no worse than the probe",
            verdict="INCONCLUSIVE",
            question="non_inferiority",
            reason="The interval reaches below the non-inferiority margin of 0.02.",
            estimate=-0.0175,
            interval=(-0.0312, -0.0038),
            level=0.90,
            unit="accuracy",
            test="Paired t over seeds",
            p_value=0.31,
            p_adjusted=0.31,
            n=5,
            n_unit="seeds",
            margin=0.02,
            minimum_detectable_effect=0.021,
            n_needed=9,
            cells=_cells("audited", "probe"),
        ),
        VerdictCard(
            name="Noise floor: audited − replicate (A/A)",
            verdict="EQUIVALENT",
            reason="The whole interval lies inside ± 0.01.",
            question="equivalence",
            estimate=0.0021,
            interval=(-0.0048, 0.0089),
            level=0.90,
            unit="accuracy",
            test="TOST, paired",
            p_value=0.018,
            n=5,
            n_unit="seeds",
            margin=0.01,
            minimum_detectable_effect=0.0121,
            cells=_cells("audited", "replicate"),
        ),
        VerdictCard(
            name="Wrong-way control: inverse − mean of the shuffles",
            verdict="HARMFUL",
            reason="Reversing the order of the ranks loses accuracy, as it should when placement matters.",
            estimate=-0.0233,
            interval=(-0.0352, -0.0111),
            level=0.90,
            unit="accuracy",
            p_value=0.0031,
            p_adjusted=0.0093,
            n=5,
            n_unit="seeds",
            margin=0.01,
            minimum_detectable_effect=0.0145,
            cells=_cells("inverse", *_shuffles()),
            exploratory=True,
        ),
    )


def _contrasts() -> IntervalPlot:
    rows = [
        IntervalRow(label=c.name, estimate=c.estimate, interval=c.interval, verdict=c.verdict, cells=c.cells)
        for c in _verdicts()
    ]
    return IntervalPlot(
        "All contrasts against zero and the margin",
        tuple(rows),
        "difference in accuracy",
        margin=0.01,
        level=0.90,
        caption="Diamonds are estimates, lines 90 % intervals; the shaded band is ± 0.01.",
    )


def _paired() -> PairedPlot:
    scores = accuracies()
    pairs = tuple(
        Pair(
            str(seed),
            Point(scores["audited", seed], "", (cell_id("audited", seed),)),
            tuple(Point(scores[arm, seed], arm, (cell_id(arm, seed),)) for arm in _shuffles()),
        )
        for seed in SEEDS
    )
    return PairedPlot(
        "Each seed: audited among its own shuffles",
        "audited",
        "shuffled",
        pairs,
        "seed",
        Axis("accuracy on test"),
        caption="If placement carried nothing, the diamond would fall anywhere among the rings.",
    )


def _scores() -> Table:
    scores = accuracies()
    rows: list[tuple[Value, ...]] = []
    for arm in ALL_ARMS:
        by_seed = [scores[arm, seed] for seed in SEEDS]
        rows.append((arm, *by_seed, sum(by_seed) / len(by_seed), 9216))
    columns = ("arm", *(f"seed {seed}" for seed in SEEDS), "mean", "parameters")
    return Table("Accuracy by arm and seed", columns, tuple(rows), tuple(_cells(arm) for arm in ALL_ARMS))


def _explanation() -> Text:
    return Text(
        "Each map gives the rank of every module. The shuffles permute the audited ranks among modules of equal shape, "
        "so each has exactly the same number of parameters.\n\nIf the audited map beats its shuffles, it is the place "
        "of the ranks that helps and not their spread."
    )


def _rank_maps() -> Heatmap:
    panels = tuple(
        HeatmapPanel(arm, MODULES, LAYERS, ranks.tolist(), cells=(cell_id(arm if arm in ALL_ARMS else "audited", 42),))
        for arm, ranks in rank_maps().items()
    )
    return Heatmap("Rank maps, seed 42", "module", "depth", "rank", panels, "log", "All arms on one scale.")


def _residual_map() -> Heatmap:
    rng = np.random.default_rng(3)
    layers, positions = 12, 48
    tokens = [f"{p}: {'·the·cat·sat·on·a·mat'.split('·')[1 + p % 6]}" for p in range(positions)]
    values = np.cumsum(rng.normal(0, 0.2, (layers, positions)), axis=0)
    hover = [[f"top-3: ' the' {v:.2f}\n' a' 0.11\n' mat' 0.04" for v in row] for row in values]
    panel = HeatmapPanel(
        "base − fine-tuned",
        tuple(tokens),
        tuple(f"{layer}" for layer in reversed(range(layers))),
        values.tolist(),
        hover,
        (cell_id("audited", 42), cell_id("probe", 42)),
    )
    return Heatmap("Norm difference by layer and position", "position", "layer", "Δ norm", (panel,), "diverging")


def _spectra() -> Plot:
    rng = np.random.default_rng(5)
    panels = []
    for column, module in enumerate(MODULES):
        series = []
        for row, layer in enumerate(LAYERS):
            decay = 0.25 + 0.08 * ((column * 3 + row) % 5)
            sigma = 3 * np.exp(-decay * np.arange(16)) * rng.uniform(0.9, 1.1, 16)
            series.append(Series(name=layer, x=list(range(1, 17)), y=sigma.tolist(), cells=((cell_id("probe", 42),),)))
        panels.append(PlotPanel(module, tuple(series)))
    return Plot(
        "Singular values of the probe's update, seed 42",
        Axis("index i"),
        Axis("σ_i", log=True),
        tuple(panels),
        ordered=True,
        caption="A steep spectrum needs little rank.",
    )


def _energy() -> Plot:
    ranks = [1.0, 2, 4, 8, 16]
    series = [
        Series(
            name=module,
            x=ranks,
            y=[1 - np.exp(-r / (1 + i)) for r in ranks],
            cells=((cell_id("probe", 42),),),
            style="step",
        )
        for i, module in enumerate(MODULES)
    ]
    guides = (Guide("y", 0.9, "energy threshold 0.90"), Guide("x", 8, "median"))
    return Plot(
        "Energy kept at a rank",
        Axis("rank", log=True),
        Axis("share of energy"),
        (PlotPanel("", tuple(series)),),
        guides,
    )


def _trajectories() -> Plot:
    """Two measurements with bands on axes of their own, over whole numbers."""
    layers = list(range(-1, 12))
    panels = []
    for title, size in (("divergence", 0.02), ("norm", 30.0)):
        series = []
        for arm, factor in (("audited", 1.0), ("uniform_matched", 0.4)):
            y = [size * factor * (layer + 2) for layer in layers]
            ends = [(0.8 * v, 1.2 * v) for v in y]
            cells = ((cell_id(arm, 42),),)
            series.append(Series(name=arm, x=layers, y=y, y_interval=ends, interval_style="band", cells=cells))
        panels.append(PlotPanel(title, tuple(series), Axis(f"{title}, units")))
    return Plot("Change by layer", Axis("layer", whole=True), Axis("value"), tuple(panels))


def _pareto() -> Plot:
    scores = accuracies()
    series = []
    for index, arm in enumerate(("probe", "audited", "uniform_matched", "inverse")):
        mean = sum(scores[arm, seed] for seed in SEEDS) / len(SEEDS)
        series.append(
            Series(
                name=arm,
                x=[24576 / 2.5**index],
                y=[mean],
                y_interval=[(mean - 0.012, mean + 0.012)],
                style="points",
                hover=["mean of five seeds"],
                cells=(_cells(arm),),
            )
        )
    return Plot(
        "Parameters against accuracy",
        Axis("trained parameters", log=True),
        Axis("accuracy on test"),
        (PlotPanel("", tuple(series)),),
    )


def _provenance() -> tuple[Note | KeyValues, ...]:
    return (
        Note("The wrong-way contrast was added after the run; its verdict is exploratory.", "warning"),
        Note("Smoke cells were left out."),
        KeyValues(
            "Study",
            (
                ("study", "rank_mechanism_tiny"),
                ("analysis hash", "9f2c51d0a4be7e6b"),
                ("study hash", "5b1f7d90c2aa41e3"),
                ("seeds", "42, 43, 44, 45, 46"),
                ("probe rank", 32),
                ("energy threshold", 0.9),
                ("git commit", "82afca1, clean"),
                ("torch", "2.13.0"),
                ("transformers", "5.23.0"),
                ("machine", "2 cores, no GPU"),
                ("cells", len(SEEDS) * len(ALL_ARMS)),
                ("cost", None),
            ),
        ),
    )


def _closing() -> Code:
    return Code(
        "OVERALL CONCLUSION\n==================\nMECHANISM BENEFIT TEST: audited > shuffled  (+0.0312, p = 0.000129)\n"
        "PERFORMANCE SUMMARY: probe 0.712  audited 0.694  shuffled 0.663\n",
        "Closing block",
    )
