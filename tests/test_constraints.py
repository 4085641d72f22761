"""constraints.txt: exact, unique pins that fit pyproject.toml and one another; and what the check of them prints."""

import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.check_resolution import PYTHONS, failure, main, pins, unpinned, uv_settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned_versions() -> dict[str, str]:
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins()}


def outside(requirements: list[Requirement]) -> list[str]:
    """The requirements that apply here and do not admit the version pinned for them."""
    versions = pinned_versions()
    return [
        f"{requirement} but {name}=={versions[name]}"
        for requirement in requirements
        if (name := canonicalize_name(requirement.name)) in versions
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        and versions[name] not in requirement.specifier
    ]


def test_every_line_is_one_exact_pin_and_no_package_has_two():
    for pin in pins():
        assert [part.operator for part in pin.specifier] == ["=="], f"{pin} is not an exact pin"
        assert "*" not in str(pin.specifier), f"{pin} is a pattern"
        assert not pin.extras and pin.url is None, f"{pin} has more than a name and a version"
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert sorted(names) == sorted(set(names)), "a package is pinned twice"


def test_each_dependency_of_the_project_has_a_pin_within_its_range():
    wanted = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    requirements = [Requirement(line) for line in wanted]
    requirements = [requirement for requirement in requirements if requirement.name != PROJECT["name"]]
    versions = pinned_versions()
    assert [str(item) for item in requirements if canonicalize_name(item.name) not in versions] == []
    assert outside(requirements) == []


def test_installed_packages_at_their_pinned_versions_accept_the_other_pins():
    """With torch's CUDA build installed this compares triton's pin with the version that torch requires."""
    versions = pinned_versions()
    installed = {canonicalize_name(item.metadata["Name"]): item for item in distributions()}
    at_pin = [
        item for name, item in installed.items() if name in versions and item.version.split("+")[0] == versions[name]
    ]
    assert at_pin, "no package is installed at its pinned version: install with -c constraints.txt"
    conflicts = [
        f"{item.name}: {line}" for item in at_pin for line in outside([Requirement(r) for r in item.requires or []])
    ]
    assert conflicts == []


def test_a_pin_outside_a_range_is_found():
    assert outside([Requirement("triton==3.9.0"), Requirement("triton>=3"), Requirement("torch==1; extra == 'x'")]) == [
        f"triton==3.9.0 but triton=={pinned_versions()['triton']}"
    ]


def test_supported_pythons_are_those_of_the_project():
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(PYTHONS[0])
    assert not Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.10.99")


def test_a_package_without_a_pin_is_named_unless_torch_decides_it():
    resolution = "torch==2.13.0\nnvidia-cublas==13.1.1.3\ncuda-toolkit[cublas]==13.0.3\nnew_package==1.0\n"
    assert unpinned(resolution) == ["new-package"]


def test_requirements_of_another_build_of_torch_are_given_to_uv():
    settings = tomllib.loads(uv_settings(("2.13.0+cpu", ["filelock", 'pyyaml; extra == "pyyaml"'])))
    assert settings["dependency-metadata"] == [
        {"name": "torch", "version": "2.13.0", "requires-dist": ["filelock", 'pyyaml; extra == "pyyaml"']}
    ]
    assert uv_settings(None) == ""


@pytest.mark.parametrize(
    ("code", "stderr", "sentence"),
    [
        (1, "error: No solution found when resolving dependencies", "does not resolve"),
        (2, "error: Failed to fetch: https://pypi.org/simple/numpy/", "pypi.org cannot be reached"),
        (2, "error: unexpected argument", "exit status 2"),
    ],
)
def test_why_a_resolution_failed_is_one_sentence(code, stderr, sentence):
    text = failure(subprocess.CompletedProcess([], code, "", stderr))
    assert sentence in text and "\n" not in text


def test_no_failed_resolution_passes(monkeypatch, capsys):
    """Nine resolutions: one without a solution makes the exit status 1 and does not hide the others."""
    codes = iter([0, 1] + [0] * 10)

    def resolve(platform, python, torch=None):
        code = next(codes)
        return subprocess.CompletedProcess([], code, "" if code else "torch==2.13.0\n", "error: No solution found")

    monkeypatch.setattr("scripts.check_resolution.resolve", resolve)
    monkeypatch.setattr("scripts.check_resolution.find_spec", lambda name: sys)
    assert main() == 1
    printed = capsys.readouterr()
    assert "macOS arm64, Python 3.13: 1 packages" in printed.out
    assert "Linux x86-64, Python 3.12: does not resolve" in printed.err
