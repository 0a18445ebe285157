"""`make quality` looks for known vulnerabilities, and fails for none on a machine without network."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"


@pytest.fixture
def audit(capsys):
    """Runs the script with a program in place of pip-audit; exit code and what it prints."""
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(code):
        return module.main([sys.executable, "-c", code]), capsys.readouterr().out

    run.module = module
    return run


def answer(*fixes):
    holes = [{"id": "CVE-1", "fix_versions": list(fix)} for fix in fixes]
    found = {"dependencies": [{"name": "a", "version": "1", "vulns": holes}, {"name": "ours", "skip_reason": "x"}]}
    return f"print({json.dumps(found)!r}); raise SystemExit({int(bool(holes))})"


def test_what_a_newer_version_mends_fails(audit):
    assert audit(answer(["2", "3"])) == (
        1,
        "a 1: CVE-1, mended in 2, 3\nAudit: 2 packages, 1 known vulnerabilities.\n",
    )
    assert audit(answer([])) == (
        0,
        "a 1: CVE-1, no version mends it yet\nAudit: 2 packages, 1 known vulnerabilities.\n",
    )
    assert audit(answer()) == (0, "Audit: 2 packages, 0 known vulnerabilities.\n")


@pytest.mark.parametrize(
    "code",
    ["import sys; sys.exit('ConnectionError: unreachable')", "print('[]')", "print('{}'); raise SystemExit(1)"],
)
def test_without_an_answer_it_is_skipped_with_a_sentence(audit, code):
    status, printed = audit(code)
    assert status == 0 and printed.startswith("Audit skipped: no vulnerabilities could be looked up (")
    assert "unreachable" in printed or "ConnectionError" not in code


def test_without_pip_audit_or_an_end_it_is_skipped(audit, capsys, monkeypatch):
    assert audit.module.main(["/no/such/program"]) == 0 and "Audit skipped" in capsys.readouterr().out
    monkeypatch.setattr(audit.module, "SECONDS", 0.1)
    status, printed = audit("import time; time.sleep(20)")
    assert status == 0 and "Audit skipped" in printed
