"""Known vulnerabilities of what requirements.lock names, by pip-audit.

Run: make audit. Exit 1 where a vulnerability is known. Where the database of advisories cannot be reached, or does not
know a package, that is said in capital letters and is no failure: a machine without a network must still be able to run
its checks.
"""

import json
import subprocess
import sys

SECONDS = 240
AUDIT = ["-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json"]


def main() -> int:
    """Print what is known and return the exit code."""
    lock = sys.argv[1] if len(sys.argv) > 1 else "requirements.lock"
    packages = None
    try:
        done = subprocess.run(
            [sys.executable, *AUDIT, "--requirement", lock], capture_output=True, text=True, timeout=SECONDS
        )
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        why = f"no answer in {SECONDS} s"
    except (json.JSONDecodeError, KeyError):
        why = ([line for line in done.stderr.splitlines() if line.strip()] or ["pip-audit said nothing"])[-1][:300]
    if packages is None:
        return loud(f"NOTHING WAS AUDITED: the database of advisories could not be asked ({why})")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, flaw) for package in packages for flaw in package.get("vulns", [])]
    for package, flaw in found:
        fixed = ", ".join(flaw.get("fix_versions") or []) or "no version yet"
        print(f"{package['name']} {package['version']}: {flaw['id']}, mended in {fixed}")
    if found:
        print(f"{len(found)} known vulnerabilities: raise the versions in constraints.txt, then make lock")
        return 1
    if len(skipped) == len(packages):
        return loud(f"NOTHING WAS AUDITED: the index that is configured here knows no advisories ({lock})")
    if skipped:
        loud(f"{len(skipped)} OF {len(packages)} PACKAGES WERE NOT AUDITED: {', '.join(skipped)}")
    print(f"{len(packages) - len(skipped)} packages audited, no known vulnerability")
    return 0


def loud(sentence: str) -> int:
    """Say what nobody may overlook, on both streams, and go on."""
    for stream in (sys.stdout, sys.stderr):
        print(f"\n{'!' * 79}\n{sentence}\n{'!' * 79}\n", file=stream, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
