"""Asks public databases for known vulnerabilities of the locked versions: python .ci/audit.py requirements-lock.txt.

It fails if a package that requirements*.txt name has a vulnerability that a newer version fixes: run `.ci/lock`. Other
findings are printed, because no change here can fix them. If no database can be reached, or none knows the packages, it
prints NOT AUDITED and passes: an audit that looked at nothing must not read like a clean one.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60  # for a database
DATABASES = ("pypi", "osv")


def direct_names() -> set[str]:
    """Names of the packages that requirements*.txt name themselves, as pip writes them."""
    paths = [path for path in ROOT.glob("requirements*.txt") if "-lock" not in path.name]
    lines = [line for path in paths for line in path.read_text().splitlines()]
    found = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def judge(report: dict, direct: set[str]) -> tuple[int, list[str], list[str]]:
    """How many packages the database knew, which flaws must be fixed here, and which are only reported."""
    known, wrong, other = 0, [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            continue
        known += 1
        for flaw in package["vulns"]:
            fixed = ", ".join(flaw["fix_versions"])
            line = f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed or 'no version yet'}"
            (wrong if fixed and package["name"].lower() in direct else other).append(line)
    return known, wrong, other


def ask(database: str, lock: str) -> dict | str:
    """pip-audit's report, or why there is none."""
    command = [sys.executable, "-m", "pip_audit", "-s", database, "--timeout", "20", "--progress-spinner", "off"]
    command += ["--disable-pip", "--require-hashes", "-r", lock, "-f", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    except ValueError:  # no report; the last line of its traceback says why
        return (done.stderr.strip().splitlines() or ["no report"])[-1][:200]


def main(locks: list[str]) -> int:
    failed = False
    for lock in locks:
        for database in DATABASES:
            report = ask(database, lock)
            known, wrong, other = (0, [], []) if isinstance(report, str) else judge(report, direct_names())
            if known:
                total = len(report["dependencies"])
                print(f"{lock}: {known} of {total} packages looked up in {database}: {len(wrong) + len(other)} flaws")
                print("".join(f"  {line}\n" for line in (*wrong, *other)), end="")
                failed |= bool(wrong)
                break
            print(f"{lock}: {database} has no answer: {report if isinstance(report, str) else 'it knows no package'}")
        else:
            print(f"{lock}: NOT AUDITED")
    if failed:
        print("run .ci/lock, and raise the least versions in requirements*.txt where an older one is allowed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
