"""configs/ray/: valid by Ray's schema and KubeRay's, in step with the images, and with commands that the launcher takes."""

import os
import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bigcircuit.cli import parse_verb
from bigcircuit.config.load import dotted_keys
from bigcircuit.config.schema import Config
from bigcircuit.sweep.config import Sweep, SweepSettings, load_sweep

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/ray"
README = (FOLDER / "README.md").read_text()
CLUSTER = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
DOCUMENTS = list(yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text()))
JOB = DOCUMENTS[-1]
LABEL = {"bigcircuit": "sweep"}


def asked(command: str) -> tuple[Sweep, str | None]:
    """What a command with launchers/sweep.py asks for, and its --address; raises UserError as the launcher would."""
    before, _, after = command.partition("launchers/sweep.py ")
    assert re.search(r"(^|[ /])python (/app/)?$", before), before
    parsed = parse_verb("sweep", shlex.split(after))
    path = ROOT / parsed.options["config"].removeprefix("/app/")
    assert path.is_file()
    return load_sweep(path, {**parsed.settings[Config], **parsed.settings[SweepSettings]}), parsed.options["address"]


# Ray's cluster launcher


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """cluster.yaml as `ray up` completes it."""
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("jsonschema", reason="Ray's schema is read with jsonschema")
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(deepcopy(CLUSTER))


def test_cluster_is_valid_by_the_schema_of_ray(prepared):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)
    [nodes] = prepared["available_node_types"].values()
    assert (
        nodes["min_workers"] == nodes["max_workers"] == CLUSTER["max_workers"] == len(CLUSTER["provider"]["worker_ips"])
    )


def test_the_schema_of_ray_refuses_what_it_does_not_know(prepared):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="dashboard_host"):
        validate_config({**prepared, "dashboard_host": "127.0.0.1"})


def start_commands(text: str) -> list[list[str]]:
    """The words of each `ray start`, from its environment on."""
    return [shlex.split(line) for line in re.findall(r"RAY_AUTH_MODE=token(?:\s+\w+=\S+)* ray start[^\n]*", text)]


def test_every_ray_start_asks_for_the_token_and_keeps_the_dashboard_on_loopback():
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)}
    commands = [command for part in ("head", "worker") for command in CLUSTER[f"{part}_start_ray_commands"]]
    texts = "\n".join([*commands, README.replace("docker run", "\n")])
    assert len(re.findall(r"ray start --", texts)) == 5
    starts = start_commands(texts)
    assert len(starts) == 4 and "-e RAY_AUTH_MODE=token" in README  # the fifth is in a container
    for words in starts:
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert set(options) <= known
        if "--head" in options:
            assert re.search(r"--dashboard-host[= ]127\.0\.0\.1", " ".join(words))
        else:
            assert "--address" in options and not any("dashboard" in option for option in options)
    assert sum("--head" in words for words in starts) == 2
    assert "RAY_enable_autoscaler_v2=0" in starts[0]  # the other version leaves a machine out


def test_the_token_goes_to_all_machines_in_a_private_file():
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "chmod 600 ~/.ray/auth_token" in CLUSTER["setup_commands"][0]
    assert README.count("(umask 077; RAY_AUTH_MODE=token ray get-auth-token --generate") == 2


def test_sweeps_of_the_readme_are_valid():
    lines = [line for line in README.splitlines() if "launchers/sweep.py --" in line]
    assert len(lines) == 2
    for line in lines:
        sweep, address = asked(line.rstrip("'"))
        assert address == "auto" and sweep.config.output.startswith("/shared/") and sweep.settings.workers == 16
    table = re.findall(r"^\| `sweep\.(\w+)` \|", README, re.MULTILINE)
    assert set(table) <= {key.partition(".")[0] for key in Sweep.__annotations__} | set(dotted_keys(SweepSettings))
    for path in re.findall(r"(?:-f |\()((?:configs/ray/|docker/)?[\w.]+\.yaml|configs/ray/Dockerfile)", README):
        assert (FOLDER / path).is_file() or (ROOT / path).is_file(), path


# KubeRay: the fields that are used, and no others


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


Quantity = Annotated[str, Field(pattern=r"^\d+(m|Gi|Mi)?$")]
Label = dict[str, str]


class Drop(Part):
    drop: tuple[Literal["ALL"]]


class ContainerSecurity(Part):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Drop


class Resources(Part):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity | int]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity | int]


class Port(Part):
    containerPort: int
    name: str


class Variable(Part):
    name: str
    value: str


class Mount(Part):
    name: str
    mountPath: str
    readOnly: bool = False


class Container(Part):
    name: str
    image: str
    resources: Resources
    securityContext: ContainerSecurity
    ports: list[Port] = []
    env: list[Variable] = []
    volumeMounts: list[Mount] = []


class Profile(Part):
    type: Literal["RuntimeDefault"]


class PodSecurity(Part):
    runAsNonRoot: Literal[True]
    runAsUser: int
    runAsGroup: int
    seccompProfile: Profile
    fsGroup: int | None = None
    fsGroupChangePolicy: Literal["OnRootMismatch"] | None = None


class Claim(Part):
    claimName: str


class Volume(Part):
    name: str
    persistentVolumeClaim: Claim


class Selector(Part):
    matchLabels: Label


class Spread(Part):
    maxSkew: Literal[1]
    topologyKey: Literal["kubernetes.io/hostname"]
    whenUnsatisfiable: Literal["DoNotSchedule"]
    labelSelector: Selector


class PodSpec(Part):
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    securityContext: PodSecurity
    automountServiceAccountToken: Literal[False]
    enableServiceLinks: Literal[False]
    restartPolicy: Literal["Never"] | None = None
    terminationGracePeriodSeconds: int | None = None
    topologySpreadConstraints: list[Spread] = []
    volumes: list[Volume] = []


class Labels(Part):
    labels: Label


class Pod(Part):
    metadata: Labels
    spec: PodSpec


class Head(Part):
    serviceType: Literal["ClusterIP"]
    enableIngress: Literal[False]
    rayStartParams: dict[str, str]
    template: Pod


class Workers(Part):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: Pod


class Auth(Part):
    mode: Literal["token"]


class RayCluster(Part):
    rayVersion: str
    authOptions: Auth
    headGroupSpec: Head
    workerGroupSpecs: Annotated[list[Workers], Field(min_length=1, max_length=1)]


class Submitter(Part):
    backoffLimit: int


class RayJobSpec(Part):
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]
    backoffLimit: Annotated[int, Field(ge=1)]
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    submitterConfig: Submitter
    submitterPodTemplate: Pod
    rayClusterSpec: RayCluster


class Name(Part):
    name: Annotated[str, Field(max_length=47, pattern=r"^[a-z][a-z0-9-]*[a-z0-9]$")]


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Name
    spec: RayJobSpec


def pods(job: RayJob) -> tuple[PodSpec, PodSpec, PodSpec]:
    """Of submitter, head and workers."""
    cluster = job.spec.rayClusterSpec
    templates = (job.spec.submitterPodTemplate, cluster.headGroupSpec.template, cluster.workerGroupSpecs[0].template)
    return tuple(template.spec for template in templates)


def test_rayjob_keeps_the_contract_and_fits_the_images():
    job = RayJob.model_validate(JOB)
    cluster = job.spec.rayClusterSpec
    [pinned] = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster.rayVersion == pinned
    submitter, head, worker = pods(job)
    images = {pod.containers[0].image for pod in (submitter, head, worker)}
    assert len(images) == 1 and images.pop() in README
    for text in ("docker/Dockerfile", "docker/Dockerfile.cpu", "configs/ray/Dockerfile"):
        user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / text).read_text(), re.MULTILINE)[-1]
        for pod in (submitter, head, worker):
            assert user == (str(pod.securityContext.runAsUser), str(pod.securityContext.runAsGroup))
    group = cluster.workerGroupSpecs[0]
    assert group.replicas == group.minReplicas == group.maxReplicas  # all there before the sweep counts what there is
    assert cluster.headGroupSpec.rayStartParams == {"num-cpus": "0"}
    assert "dashboard-host" not in group.rayStartParams  # the operator has to reach it: see the NetworkPolicy


def test_a_wrong_rayjob_breaks_the_contract():
    wrong = deepcopy(JOB)
    wrong["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "disabled"
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] = "LoadBalancer"
    wrong["spec"]["entryPoint"] = wrong["spec"].pop("entrypoint")
    with pytest.raises(ValidationError) as caught:
        RayJob.model_validate(wrong)
    assert {".".join(map(str, error["loc"])) for error in caught.value.errors()} == {
        "spec.entrypoint",
        "spec.entryPoint",
        "spec.rayClusterSpec.authOptions.mode",
        "spec.rayClusterSpec.headGroupSpec.serviceType",
    }


def test_only_the_job_and_the_operator_reach_its_pods():
    policy = DOCUMENTS[-2]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    spec, job = policy["spec"], JOB["spec"]
    assert spec["podSelector"] == {"matchLabels": LABEL} and spec["policyTypes"] == ["Ingress"]
    own, operator = spec["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": LABEL}}]}
    ports = {port["name"]: port["containerPort"] for port in head_container()["ports"]}
    assert operator["ports"] == [{"port": ports["dashboard"]}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    cluster = job["rayClusterSpec"]
    for template in (job["submitterPodTemplate"], *(part["template"] for part in groups(cluster))):
        assert LABEL.items() <= template["metadata"]["labels"].items()
    assert not [document for document in DOCUMENTS if document["kind"] in ("Service", "Ingress")]


def head_container() -> dict[str, Any]:
    return JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_entrypoint_is_a_sweep_that_fits_the_cluster():
    job = RayJob.model_validate(JOB)
    sweep, address = asked(job.spec.entrypoint)
    _, head, worker = pods(job)
    limits = worker.containers[0].resources.limits
    replicas = job.spec.rayClusterSpec.workerGroupSpecs[0].replicas
    settings, group = sweep.settings, worker.topologySpreadConstraints[0].labelSelector.matchLabels
    assert address == "auto" and "\n" not in job.spec.entrypoint
    assert settings.workers * settings.ranks * settings.gpus == replicas * limits["nvidia.com/gpu"]
    assert settings.workers * settings.ranks * (settings.cpus or 1) <= replicas * int(limits["cpu"])
    assert settings.trials >= settings.workers * settings.slots  # or some have nothing to do
    assert group.items() <= job.spec.rayClusterSpec.workerGroupSpecs[0].template.metadata.labels.items()
    for pod in (head, worker):
        mounts = {mount.mountPath: mount for mount in pod.containers[0].volumeMounts}
        assert {mount.name for mount in mounts.values()} == {volume.name for volume in pod.volumes}
        assert Path("/runs") in Path(sweep.config.output).parents and not mounts["/runs"].readOnly
        assert Path("/models") in Path(sweep.config.model.path).parents


def test_claims_are_those_of_the_other_job():
    other = list(yaml.safe_load_all((ROOT / "docker/kubernetes.yaml").read_text()))
    claims = [[part for part in some if part["kind"] == "PersistentVolumeClaim"] for some in (DOCUMENTS, other)]
    assert claims[0] == claims[1]
    used = {
        volume.persistentVolumeClaim.claimName for pod in pods(RayJob.model_validate(JOB)) for volume in pod.volumes
    }
    assert used == {claim["metadata"]["name"] for claim in claims[0]}


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl apply` does; a CRD alone lets them pass and drops them."""
    if isinstance(schema, list):
        return [strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        inner["additionalProperties"] = False
    return inner


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no file: see configs/ray/README.md")
def test_rayjob_is_valid_by_the_schema_of_kuberay():
    jsonschema = pytest.importorskip("jsonschema")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(Path(os.environ["KUBERAY_CRD"]).read_text(), loader)
    [schema] = [one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1"]
    assert crd["spec"]["names"]["kind"] == JOB["kind"]
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    validator = jsonschema.Draft202012Validator(strict(schema))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(JOB)] == []
    for path in ("spec", "spec.rayClusterSpec.authOptions", "spec.rayClusterSpec.headGroupSpec.template.spec"):
        wrong = deepcopy(JOB)
        place = wrong
        for key in path.split("."):
            place = place[key]
        place["unknown"] = 1
        assert [error.json_path for error in validator.iter_errors(wrong)] == [f"$.{path}"]
