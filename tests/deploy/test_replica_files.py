"""The files for several replicas: configurations load, manifests fit their schemas, nothing is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot.serving.model.catalogue import QWEN3_4B
from storage.config import load_config

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "compose.replicas.yaml"
# Clusters that are in use today: the schemas of both ends hold.
VERSIONS = ("1.29", "1.33")


def kustomization() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return found


def manifests() -> list[dict[str, Any]]:
    return [
        each
        for name in kustomization()["resources"]
        for each in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]


def pods() -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in manifests()
        if "template" in each.get("spec", {})
    }


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods().items():
        for each in pod["containers"]:
            yield f"{name}/{each['name']}", each


@pytest.mark.parametrize("name", ["strop.toml", "replica.toml"])
def test_the_configurations_load_and_name_a_pinned_base(name: str, tmp_path: Path) -> None:
    config = load_config(KUBERNETES / name, {"STROP_HOME": str(tmp_path)})
    assert (config.model.base, config.model.revision) == (QWEN3_4B.id, QWEN3_4B.revision)
    assert bool(config.server.base_url) == (name == "strop.toml")


def test_who_serves_looks_for_adapters_where_they_are_mounted() -> None:
    """Without a word of a token it would be the playground, whose folder is another one."""
    compose = yaml.safe_load(COMPOSE.read_text())["services"]
    settings = {"strop": "strop.toml", "replica": "replica.toml"}
    for name, pod in pods().items():
        if name in settings:
            [ours] = [each for each in pod["containers"] if each["name"] == "strop"]
            environment = {each["name"]: each.get("value", "") for each in ours["env"]}
            mounted = {mount["mountPath"] for mount in ours["volumeMounts"]}
            assert _adapters(settings[name], environment) in mounted
    for name, service in compose.items():
        kind = name.rpartition("-")[0] or name
        if kind in settings:
            mounted = {volume.split(":")[1] for volume in service["volumes"]}
            assert _adapters(settings[kind], service["environment"]) in mounted


def _adapters(name: str, environment: dict[str, str]) -> str:
    token = {"DISCORD_TOKEN": environment.get("DISCORD_TOKEN", "")}
    if "DISCORD_TOKEN_FILE" in environment:
        token = {"DISCORD_TOKEN": "read from a file"}
    return str(load_config(KUBERNETES / name, {"STROP_HOME": "/data", **token}).adapters)


def test_every_file_that_is_named_is_there() -> None:
    found = kustomization()
    maps = {each["name"]: each["files"] for each in found["configMapGenerator"]}
    for name in (
        *found["resources"],
        *(file.rpartition("=")[2] for files in maps.values() for file in files),
    ):
        assert (KUBERNETES / name).is_file(), name
    claims = {each["metadata"]["name"] for each in manifests() if each["kind"] == "PersistentVolumeClaim"}
    for pod in pods().values():
        volumes = {each["name"]: each for each in pod["volumes"]}
        for volume in volumes.values():
            assert volume.get("configMap", {"name": "strop-config"})["name"] in maps
            assert volume.get("persistentVolumeClaim", {"claimName": "data"})["claimName"] in claims
        for each in pod["containers"]:
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes.keys()


def test_nothing_runs_as_root_or_writes_where_it_need_not() -> None:
    for name, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
    for name, each in containers():
        held = each["securityContext"]
        assert (held["allowPrivilegeEscalation"], held["readOnlyRootFilesystem"]) == (False, True), name
        assert held["capabilities"] == {"drop": ["ALL"]}, name
        assert {"requests", "limits"} == each["resources"].keys(), name
        assert re.search(r":\d+\.\d+\.\d+", each["image"]), name


def test_one_process_alone_has_the_database_and_the_replicas_only_read_adapters() -> None:
    modes = {
        each["metadata"]["name"]: each["spec"]["accessModes"]
        for each in manifests()
        if each["kind"] == "PersistentVolumeClaim"
    }
    assert modes == {"data": ["ReadWriteOncePod"], "adapters": ["ReadWriteMany"]}
    (strop,) = (each for each in manifests() if each["kind"] == "StatefulSet")
    assert strop["spec"]["replicas"] == 1
    for name, each in containers():
        for mount in each["volumeMounts"]:
            assert mount["name"] != "adapters" or name == "strop/strop" or mount["readOnly"]


def test_the_routers_and_proxies_let_through_what_the_tested_ones_do() -> None:
    tested = (DEPLOY / "vllm-router.conf").read_text()
    (allowed,) = re.findall(r"location ~ \S+ \{", tested)
    retried = re.findall(r"proxy_next_upstream\w* .*;", tested)
    assert len(retried) == 2
    for name in ("router.conf", "proxy.conf"):
        text = (KUBERNETES / name).read_text()
        assert re.findall(r"location ~ \S+ \{", text) == [allowed]
        assert re.findall(r"proxy_next_upstream\w* .*;", text) == (retried if name == "router.conf" else [])


def test_the_compose_file_holds_what_it_mounts_and_pins_what_it_runs() -> None:
    loaded = yaml.safe_load(COMPOSE.read_text())
    # These are the operator's own, and in no repository.
    secret = {"vllm-keys.conf", "replica-key", "discord-token"}
    for name, service in loaded["services"].items():
        assert re.search(r":\d+\.\d+\.\d+", service["image"]), name
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert "ports" not in service, "nothing is published on the host's addresses"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./") and source[2:] not in secret:
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("./"):
                assert source in loaded["volumes"], source
    assert loaded["services"]["replica-1"]["volumes"][0] == "adapters:/data/adapters:ro"


def test_the_image_with_vllm_stands_on_strops_own_at_the_pinned_versions() -> None:
    text = (DEPLOY / "Dockerfile.vllm").read_text()
    makefile = (DEPLOY.parent / "Makefile").read_text()
    (pins,) = re.findall(r"vllm==\S+ vllm-bnb-plugin==\S+", makefile)
    assert pins in text
    assert re.findall(r"^FROM (\S+)$", text, re.MULTILINE) == ["strop:0.1.0-cuda"]
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"


@pytest.mark.scale
@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_what_a_cluster_accepts(version: str) -> None:
    import kubernetes_validate

    for each in manifests():
        kubernetes_validate.validate(each, version, strict=True)
