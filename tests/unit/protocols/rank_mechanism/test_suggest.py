from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_files import Q0, Q1, factors, named_tensors, write_adapter
from test_audit import planted

from nullarm.errors import StudyError, UsageError
from nullarm.protocols.rank_mechanism.audit import audit_adapter
from nullarm.protocols.rank_mechanism.policy import AllocationPolicy
from nullarm.protocols.rank_mechanism.spectra import Audit
from nullarm.protocols.rank_mechanism.suggest import default_policy, suggestion


def audited(directory: Path, sigma: dict[str, list[float]], **config: Any) -> Audit:
    return audit_adapter(write_adapter(directory, named_tensors(planted(sigma)), **config))


@pytest.fixture
def uneven(tmp_path: Path) -> Audit:
    return audited(tmp_path, {Q0: [1.0, 0, 0, 0], Q1: [1.0, 1, 1, 0]})


def test_per_layer_names_every_module(uneven: Audit) -> None:
    found = suggestion(uneven, "per-layer")
    assert found["rank_pattern"] == {Q0: 1, Q1: 4}
    assert (found["parameters"], found["probe_parameters"]) == (5 * 22, 8 * 22)
    assert found == uneven.suggestion, "the default of an audit"
    json.dumps(found, allow_nan=False)


def test_global_gives_one_rank_by_quantile(uneven: Audit) -> None:
    found = suggestion(uneven, "global")
    assert found["rank"] == 4
    assert found["ranks"] == {"uniform_median": 2, "uniform_p90": 4}
    assert found["parameters"] == 8 * 22


def test_the_policy_is_followed_and_told(uneven: Audit) -> None:
    policy = AllocationPolicy(allowed_ranks=(1, 2, 3, 4), uniform_quantiles=(0.0,))
    assert suggestion(uneven, "per-layer", policy)["rank_pattern"] == {Q0: 1, Q1: 3}
    assert suggestion(uneven, "global", policy)["rank"] == 1
    assert suggestion(uneven, "global", policy)["policy"]["allowed_ranks"] == [1, 2, 3, 4]


@pytest.mark.parametrize(("r", "ladder"), [(6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64)), (1, (1,))])
def test_the_default_ladder_reaches_the_adapters_own_rank(tmp_path: Path, r: int, ladder: tuple[int, ...]) -> None:
    audit = audit_adapter(write_adapter(tmp_path, named_tensors({Q0: factors(r=r)}), r=r))
    assert default_policy(audit).allowed_ranks == ladder


def test_unknown_modes_and_impossible_ladders_are_refused(uneven: Audit) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'per-layer'.*valid: global, per-layer"):
        suggestion(uneven, "per_layer")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="no allowed rank lies between"):
        suggestion(uneven, policy=AllocationPolicy(allowed_ranks=(32, 64)))
