"""The rule that CI skips nothing, shown to bite."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="no chromium here")
def test_marked(): ...

def test_halfway():
    pytest.skip("no chromium here either")

@pytest.mark.gpu
def test_needs_a_gpu():
    pytest.skip("no GPU")

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    raise ValueError
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    hooks = CONFTEST.read_text().replace('pytest_plugins = ["pytester"]', "")
    pytester.makeconftest(hooks)
    pytester.makeini("[pytest]\nmarkers = gpu: needs a CUDA device")
    return pytester


def test_skips_are_skips_by_default(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NULLARM_REQUIRE_ALL", raising=False)
    session.makepyfile(SKIPPING)
    session.runpytest().assert_outcomes(skipped=3, xfailed=1)


def test_skips_fail_when_everything_is_required(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLARM_REQUIRE_ALL", "1")
    session.makepyfile(SKIPPING)
    result = session.runpytest()
    result.assert_outcomes(errors=1, failed=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["*NULLARM_REQUIRE_ALL=1 allows no skip: Skipped: no chromium here"])
    assert result.ret != 0


def test_a_module_that_skips_itself_fails_too(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLARM_REQUIRE_ALL", "1")
    session.makepyfile("import pytest\npytest.importorskip('no_such_module', reason='not installed')")
    result = session.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*allows no skip: Skipped: not installed*"])
