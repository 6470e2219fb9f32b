"""The hashed requirement files hold what requirements*.txt ask for, on every platform, and name no registry."""

import importlib.util
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from r23d_jax.commands import requirements

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements.txt": "requirements-lock.txt",
    "requirements-cpu.txt": "requirements-cpu-lock.txt",
    "requirements-serve.txt": "requirements-serve-lock.txt",
}
PLATFORMS = {"linux": ("linux", "x86_64"), "arm": ("linux", "aarch64"), "mac": ("darwin", "arm64")}
PYTHONS = ("3.11", "3.12", "3.13")


def read_lock(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Pins by package, each with the number of its hashes."""
    text = (ROOT / name).read_text()
    pins: dict[str, list[tuple[Requirement, int]]] = {}
    for block in re.split(r"\n(?=\S)", text):
        head, *hashes = re.split(r" \\\n\s+--hash=", block.strip())
        if head and not head.startswith("#"):
            pin = Requirement(head)
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), head
            pins.setdefault(canonicalize_name(pin.name), []).append((pin, len(hashes)))
    return pins


def asked_for(name: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    nested = [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    own = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return own + [requirement for other in nested for requirement in asked_for(other)]


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_one_hashed_version_of_everything_asked_for(name: str, platform: str, python: str) -> None:
    system, machine = PLATFORMS[platform]
    here = {"sys_platform": system, "platform_machine": machine, "extra": ""}
    here |= {"python_version": python, "python_full_version": f"{python}.5"}
    pins = read_lock(LOCKS[name])
    assert len(pins) > 50
    for package, versions in pins.items():
        there = [(pin, hashes) for pin, hashes in versions if pin.marker is None or pin.marker.evaluate(here)]
        assert len(there) <= 1, f"{package} has two versions"
        assert all(hashes for _, hashes in there), f"{package} has no hash"
    for wanted in asked_for(name):
        if wanted.marker is not None and not wanted.marker.evaluate(here):
            continue
        found = [pin for pin, _ in pins[canonicalize_name(wanted.name)] if not pin.marker or pin.marker.evaluate(here)]
        assert len(found) == 1, f"{wanted} is not in {LOCKS[name]}: run .ci/lock"
        (version,) = found[0].specifier
        assert version.operator == "==" and wanted.specifier.contains(version.version), f"{wanted}: run .ci/lock"


@pytest.mark.parametrize("name", LOCKS.values())
def test_no_registry_is_named(name: str) -> None:
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted", (ROOT / name).read_text())


def test_the_oldest_versions_that_are_tried_are_those_allowed() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = {pin.name: pin for pin in (Requirement(line.partition("#")[0]) for line in lines if line[0] != "#")}
    for wanted in asked_for("requirements-cpu.txt"):
        (least,) = (Version(part.version) for part in wanted.specifier if part.operator == ">=")
        (oldest,) = (Version(part.version) for part in pins.pop(wanted.name).specifier)
        assert oldest.release[: len(least.release)] == least.release, f"{wanted} is tried with {oldest}"
    assert set(pins) == {"pyparsing"}


def test_the_command_requirements_knows_the_smallest_set() -> None:
    asked = {canonicalize_name(requirement.name) for requirement in asked_for("requirements-slim.txt")}
    known = [*requirements.BASE, *requirements.VIDEO]
    assert asked <= {canonicalize_name(str(requirements._PIP_NAMES.get(name, name))) for name in known}


def test_the_larger_set_holds_the_smaller_one() -> None:
    large, small = (read_lock(LOCKS[name]) for name in ("requirements.txt", "requirements-cpu.txt"))
    assert {name: [str(pin) for pin, _ in pins] for name, pins in small.items()}.items() <= {
        name: [str(pin) for pin, _ in pins] for name, pins in large.items()
    }.items()  # so that an audit of the larger one is an audit of both


def test_what_an_audit_fails_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    assert {"jax", "numpy", "tensorflow-cpu", "torch", "pytest"} <= audit.direct_names()

    def package(name: str, *fixed: str) -> dict:
        return {"name": name, "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": list(fixed)}]}

    reports: dict[str, dict | str] = {}
    monkeypatch.setattr(audit, "ask", lambda database, lock: reports.get(database, "no network"))
    assert audit.main(["a.txt"]) == 0 and "a.txt: NOT AUDITED" in capsys.readouterr().out
    reports["pypi"] = {"dependencies": [{"name": "numpy", "skip_reason": "not found"}]}
    assert audit.main(["a.txt"]) == 0 and "NOT AUDITED" in capsys.readouterr().out
    reports["osv"] = {"dependencies": [package("numpy"), package("pillow", "2")]}
    assert audit.main(["a.txt"]) == 0 and "pillow 1: CVE-1, fixed in 2" in capsys.readouterr().out
    reports["osv"] = {"dependencies": [package("numpy", "2")]}
    assert audit.main(["a.txt"]) == 1 and "numpy 1: CVE-1, fixed in 2" in capsys.readouterr().out
