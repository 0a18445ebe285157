"""Known vulnerabilities of what is installed, by pip-audit: those that a newer version mends end it with exit code 1.

    python .ci/audit.py             # `make audit`
    python .ci/audit.py --warn      # only says so: `make quality`, which is not to fail for news from outside

Where the service that knows them cannot be reached, or pip-audit is not installed, a sentence says that nothing was
looked up, and the exit code is 0: no machine without network is to fail for that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

PIP_AUDIT = (sys.executable, "-m", "pip_audit")
OPTIONS = ("--format", "json", "--progress-spinner", "off", "--skip-editable", "--timeout", "10")
SECONDS = 60


def main(command: Sequence[str] = PIP_AUDIT) -> int:
    """Look them up, print them, and give the exit code."""
    try:
        run = subprocess.run(
            [*command, *OPTIONS], capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
        found = json.loads(run.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        lines = run.stderr.strip().splitlines() if not isinstance(error, OSError | subprocess.TimeoutExpired) else []
        print(f"Audit skipped: no vulnerabilities could be looked up ({lines[-1][:200] if lines else error}).")
        return 0
    rows = [(each["name"], each["version"], hole) for each in found for hole in each.get("vulns", [])]
    for name, version, hole in rows:
        remedy = f"mended in {', '.join(hole['fix_versions'])}" if hole["fix_versions"] else "no version mends it yet"
        print(f"{name} {version}: {hole['id']}, {remedy}")
    print(f"Audit: {len(found)} packages, {len(rows)} known vulnerabilities.")
    return int(any(hole["fix_versions"] for _, _, hole in rows))


if __name__ == "__main__":
    status = main()
    raise SystemExit(0 if "--warn" in sys.argv[1:] else status)
