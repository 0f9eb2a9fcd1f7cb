"""Known vulnerabilities of what requirements.lock pins, by pip-audit: `make audit`. It warns, and never fails.

pip-audit calls a package that its service does not know skipped, and then finds nothing: here that is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 120
COMMAND = "-m pip_audit -r requirements.lock --disable-pip --require-hashes --format=json --progress-spinner=off"


def main() -> None:
    """Prints one line, and one more a vulnerability."""
    try:
        told = subprocess.run(
            [sys.executable, *COMMAND.split()], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        packages = json.loads(told.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"audit: no answer from the vulnerability service in {TIMEOUT_S} s; nothing was checked")
        return
    except (ValueError, KeyError, TypeError):
        why = (told.stderr.strip().splitlines() or ["it printed nothing"])[-1][:200]
        print(f"audit: pip-audit could not ask the vulnerability service ({why}); nothing was checked")
        return
    asked = [package for package in packages if "skip_reason" not in package]
    found = [(package, fault) for package in asked for fault in package["vulns"]]
    for package, fault in found:
        fixed = ", ".join(fault["fix_versions"]) or "no version yet"
        print(f"warning: {package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
    if not asked:
        print("audit: the vulnerability service knows none of the packages, or is not there; nothing was checked")
        return
    unknown = len(packages) - len(asked)
    left = f"; the service could not be asked about {unknown}" if unknown else ""
    print(f"audit: {len(found)} known vulnerabilities in {len(asked)} packages{left}")


if __name__ == "__main__":
    main()
