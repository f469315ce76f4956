"""The statistics engine: arrays with names in, verdicts out. It knows no models, files or terminals.

One idea per module, read in this order:

| module | what it holds |
|---|---|
| `verdict` | the words: `Verdict`, `Interval`, `PValues`, `Evidence`, `Judgement` |
| `pairing` | long-form scores to `[seeds, replicates, items]` matrices, or a `Problem` |
| `randomisation`, `paired`, `equivalence`, `bootstrap` | the methods, each with an outside oracle in the tests |
| `families`, `proportions`, `few_runs` | Holm and Benjamini–Hochberg, Wilson, interquartile mean |
| `design`, `noise`, `power`, `closed_form` | what a design can show, before any money is spent |
| `evidence`, `forecast`, `decide`, `reasons`, `judge` | from scores to a verdict with its reason |
| `throughput`, `contamination` | timings: log ratios over blocks, drift, and spread that betrays a disturbance |

Conventions. The direction of a claim is declared beforehand, so every test is one-sided at α and every interval
two-sided at 1 − 2α (its lower end is a one-sided bound at α, and TOST at α is that same interval inside ±δ). Two-sided
at α, with an interval at 1 − α, are a `difference`, whose direction nobody declares, and a judgement of somebody's
published means, whose direction nobody declared to us; their TOST keeps its interval at 1 − 2α.
Modules are imported one by one: this file imports nothing, so that planning does not pay for judging.
"""
