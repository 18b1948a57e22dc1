"""Ray and KubeRay accept the cluster files, which ask for a token, expose nothing, and match the README."""

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from humpback_ray.config import load
from humpback_ray.graph import Graph
from humpback_ray.runconfig import RunConfig

REPOSITORY = Path(__file__).parent.parent
CLUSTER = REPOSITORY / "cluster"
RAY = "2.60"

# The fields of KubeRay's ray.io/v1 (CRD reference of KubeRay 1.7), so that a typing error is not silently ignored.
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend", "preRunningDeadlineSeconds",
}  # fmt: skip
CLUSTER_FIELDS = {
    "upgradeStrategy", "authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations",
    "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "historyServerOptions", "networkPolicy", "tlsOptions",
    "headGroupSpec", "rayVersion", "workerGroupSpecs",
}  # fmt: skip
GROUP_FIELDS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "resources", "labels",
    "rayStartParams", "template", "scaleStrategy", "numOfHosts", "suspend",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version", "env",
    "envFrom", "volumeMounts", "command", "args",
}  # fmt: skip


def aws() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "aws.yaml").read_text())


def kuberay() -> dict[tuple[str, str], dict[str, Any]]:
    """The documents of the file, by kind and name."""
    documents = yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text())
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def rayjob() -> dict[str, Any]:
    return kuberay()["RayJob", "humpback-ray"]


def pods() -> dict[str, dict[str, Any]]:
    """The templates of all pods that the job creates, by their role."""
    spec = rayjob()["spec"]
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": spec["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **groups}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def test_the_aws_file_fits_rays_own_schema() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(aws(), schema)


def test_the_aws_file_passes_the_checks_of_ray_up_before_it_calls_aws() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(aws()))
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu", "gpu-on-demand"}, (
        "Ray has added no default node type"
    )


def test_the_aws_pools_start_at_nothing_and_are_labeled_by_their_market() -> None:
    config = aws()
    types = dict(config["available_node_types"])
    assert config["head_node_type"] == "head"
    head = types.pop("head")
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    for name, pool in types.items():
        assert pool["min_workers"] == 0
        assert pool["max_workers"] > 0
        spot = pool["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert pool["labels"] == {"ray.io/market-type": "spot" if spot else "on-demand"}, name
    gpus = [
        pool["labels"]["ray.io/market-type"] for pool in types.values() if pool["node_config"]["InstanceType"][0] == "g"
    ]
    assert sorted(gpus) == ["on-demand", "spot"], "GPUs of both markets"
    assert config["max_workers"] >= sum(pool["max_workers"] for pool in types.values())
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_aws_cluster_demands_a_token_and_has_no_public_address() -> None:
    config = aws()
    assert config["provider"]["use_internal_ips"] is True
    for node_type in config["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"], "Ray's own group opens port 22 to the world"
        assert node_type["node_config"]["IamInstanceProfile"]
        assert node_type["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for role in ("head", "worker"):
        start = config[f"{role}_start_ray_commands"][-1]
        assert start.startswith("export RAY_AUTH_MODE=token;")
        assert "ray start" in start
        assert "--metrics-export-port=8080" in start, "a port that README and firewalls can name"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_rayjob_has_only_fields_that_kuberay_knows() -> None:
    job = rayjob()
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= JOB_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= GROUP_FIELDS
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert {document["metadata"].get("namespace", "humpback") for document in kuberay().values()} == {"humpback"}


def test_the_rayjob_demands_a_token_and_is_reachable_from_inside_only() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}, "KubeRay sets RAY_AUTH_MODE=token and RAY_AUTH_TOKEN from it"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "the first Ray with token authentication"


def test_the_rayjob_has_a_cpu_pool_and_gpu_pools_of_both_markets_that_start_at_nothing() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu-spot", "gpu-on-demand"}
    for group in groups.values():
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", group["groupName"])
    for name, market, capacity in (("gpu-spot", "spot", "SPOT"), ("gpu-on-demand", "on-demand", "ON_DEMAND")):
        assert groups[name]["labels"] == {"ray.io/market-type": market}
        pod = groups[name]["template"]["spec"]
        assert capacity in pod["nodeSelector"].values()
        assert {"nvidia.com/gpu"} == {toleration["key"] for toleration in pod["tolerations"]}
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0
    assert "nodeSelector" not in groups["cpu"]["template"]["spec"]


def test_every_pod_of_the_rayjob_meets_the_restricted_pod_security_standard_and_is_bounded() -> None:
    """According to kubernetes.io/docs/concepts/security/pod-security-standards/; KubeRay adds a sidecar to the head."""
    labels = kuberay()["Namespace", "humpback"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    sidecar = {"securityContext": rayjob()["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]}
    for name, template in pods().items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in [*pod["containers"], *([sidecar] if name == "head" else [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "procMount"} & set(container["securityContext"])
        assert {kind for volume in pod.get("volumes", ()) for kind in volume} <= {"name", "emptyDir", "projected"}
        assert pod["restartPolicy"] == "Never"
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_only_the_autoscaler_has_a_kubernetes_token() -> None:
    documents = kuberay()
    accounts = {name: document for (kind, name), document in documents.items() if kind == "ServiceAccount"}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    used = {name: template["spec"]["serviceAccountName"] for name, template in pods().items()}
    assert used.pop("head") == "humpback-head"
    assert set(used.values()) == {"humpback-worker"}, "KubeRay lets the head's account patch pods"
    assert set(accounts) == {"humpback-head", "humpback-worker"}
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    for name, template in pods().items():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert not [m for c in pod["containers"] for m in c.get("volumeMounts", ()) if m["mountPath"].startswith(place)]
        tokens = [volume["name"] for volume in pod.get("volumes", ()) if "projected" in volume]
        assert tokens == (["kubernetes"] if name == "head" else [])
    mounts = rayjob()["spec"]["rayClusterSpec"]["autoscalerOptions"]["volumeMounts"]
    assert mounts == [{"name": "kubernetes", "mountPath": place, "readOnly": True}]


def selects(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    return policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()


def test_the_network_denies_traffic_without_a_policy_and_metrics_are_reachable_only_from_inside() -> None:
    policies = {name: document for (kind, name), document in kuberay().items() if kind == "NetworkPolicy"}
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    node_types = {"head": {"ray.io/node-type": "head"}, "submitter": {}}
    for name, template in pods().items():
        labels = template["metadata"]["labels"] | node_types.get(name, {"ray.io/node-type": "worker"})
        rules = [rule for policy in policies.values() if selects(policy, labels)
                 for rule in policy["spec"].get("ingress", ())]  # fmt: skip
        for rule in rules:
            assert rule["from"], "an empty list is everyone"
            inside = all(peer.get("podSelector") == {"matchLabels": {"app": "humpback-ray"}} for peer in rule["from"])
            assert inside or [port["port"] for port in rule["ports"]] == [8265], name
        assert bool(rules) == (name != "submitter")
        egress = [rule for policy in policies.values() if selects(policy, labels)
                  for rule in policy["spec"].get("egress", ())]  # fmt: skip
        assert all(rule.get("to") or {port["port"] for port in rule["ports"]} <= {443, 6443} for rule in egress)
    head = next(peer for rule in policies["ray-head"]["spec"]["ingress"] for peer in rule["from"] if len(peer) == 2)
    assert head["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    cluster = rayjob()["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert group["rayStartParams"]["metrics-export-port"] == "8080"


def test_the_rayjob_runs_the_pipeline_and_cleans_up_after_itself() -> None:
    spec = rayjob()["spec"]
    assert spec["entrypoint"].startswith("python -m jobs.pipeline configs/")
    assert "root=s3://" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0


def test_the_rayjob_is_retried_but_not_for_exit_codes_that_a_retry_cannot_fix() -> None:
    spec = rayjob()["spec"]
    assert spec["backoffLimit"] > 0, "the same command resumes, so a retry resumes"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment == {"HUMPBACK_STOP_CODES": "2,3,4"}  # tests/jobs/test_reach.py shows that such a job is STOPPED


README = (CLUSTER / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))]
BOTH = README + "".join(page.read_text() for page in PAGES)
"""The cluster's page and the project's."""
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()


def commands() -> list[list[str]]:
    """The words of every command in the code blocks of the README files, continued lines joined."""
    blocks = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```", BOTH, re.M | re.S)
    lines = (line.partition("  #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [shlex.split(line) for line in lines if re.match(r" *(python|ray|docker|kubectl|pip|make|export) ", line)]


def test_the_commands_of_the_readme_files_name_existing_files() -> None:
    found = commands()
    assert {words[0] for words in found} >= {"python", "ray", "docker", "make"}
    stages = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.M))
    for words in found:
        for word in words:
            path = word.split("=")[-1] if word.startswith("--") else word
            if re.fullmatch(r"(cluster|configs|docs)/[\w./-]+", path):
                assert (REPOSITORY / path).exists(), words
            if re.fullmatch(r"jobs\.\w+", word):
                assert (REPOSITORY / f"{word.replace('.', '/')}.py").exists(), words
        if "--target" in words:
            assert words[words.index("--target") + 1] in stages
    for path in re.findall(r"`(?:[a-z]+ )*((?:cluster|configs)/[\w./-]+)`", BOTH):
        assert (REPOSITORY / path).exists(), path
    for name in re.findall(r"^\| `([\w.-]+)` \|", README, re.M):
        assert (CLUSTER / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    assert {words[1] for words in found if words[0] == "make"} <= targets


def test_every_extra_that_a_document_names_exists_and_boto3_is_named() -> None:
    texts = [BOTH, DOCKERFILE, (CLUSTER / "aws.yaml").read_text(), (REPOSITORY / "docs/gpu.md").read_text()]
    named = {
        extra.strip()
        for text in texts
        for extras in re.findall(r"(?:humpback-ray|['\"]\.)\[([\w, -]+)\]", text)
        for extra in extras.split(",")
    }
    assert named >= {"vllm", "lora", "aws"}
    assert named <= set(PROJECT["optional-dependencies"])
    assert PROJECT["optional-dependencies"]["aws"] == ["boto3"]
    assert "boto3" in README


def test_the_image_has_the_libraries_of_every_configuration() -> None:
    stages = dict(re.findall(r"^FROM [^\n]* AS (\w+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
    carried = {name: set(re.search(r'"\.\[([\w,]+)\]"', text)[1].split(",")) for name, text in stages.items()}  # pyright: ignore[reportOptionalSubscript]
    assert list(stages)[-1] == "gpu", "`docker build` makes the last one"
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        config = load(RunConfig, path)
        needed = {package.extra for _, package in Graph(config).packages(Graph(config).until(None)) if package.extra}
        assert needed <= carried["gpu"], path
        if path.stem == "demo":
            assert needed <= carried["cpu"]
    for name in {*carried["gpu"], "kernels"}:
        assert f"`{name}`" in README
    assert "FLASH_ATTN_WHEEL" in README


def test_every_market_that_a_document_names_fits_a_gpu_pool_of_every_file() -> None:
    named = set(re.findall(r"ray\.io/market-type: ([\w-]+)", BOTH))
    assert named == {"spot", "on-demand"}
    types = aws()["available_node_types"]
    gpu = {types[name]["labels"]["ray.io/market-type"] for name in types if name.startswith("gpu")}
    groups = rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert gpu == {g["labels"]["ray.io/market-type"] for g in groups if g["groupName"].startswith("gpu")} == named


def test_the_readme_names_the_ports_accounts_rights_and_deadlines_of_the_files() -> None:
    for name in ("humpback-head", "humpback-worker", "deny-all", "`restricted`", "preRunningDeadlineSeconds"):
        assert name in README
    for port in ("8080", "44217", "44227"):
        assert port in README
        assert port in (CLUSTER / "aws.yaml").read_text()
        assert port in (CLUSTER / "kuberay-rayjob.yaml").read_text()
    assert f"`backoffLimit: {rayjob()['spec']['backoffLimit']}`" in README
    for right in ("RunInstances", "TerminateInstances", "CreateTags", "PassRole", "StartSession"):
        assert right in README
    images = {*re.findall(r"humpback-ray:(\d[\d.]*\d)", README + (CLUSTER / "aws.yaml").read_text())}
    images |= {container["image"].partition(":")[2] for t in pods().values() for container in t["spec"]["containers"]}
    assert images == {"0.1.0"}


def test_one_version_of_ray_is_named_everywhere() -> None:
    project = (CLUSTER.parent / "pyproject.toml").read_text()
    assert f"=={RAY}.*" in project
    images = re.findall(r"^FROM rayproject/ray:([\d.]+)-(py\d+)-(\w+) AS", DOCKERFILE, re.M)
    assert [kind for _, _, kind in images] == ["cpu", "gpu"]
    assert len({image[:2] for image in images}) == 1
    assert images[0][0].startswith(RAY)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"].startswith(RAY)


@pytest.mark.parametrize("name", ["aws.yaml", "kuberay-rayjob.yaml"])
def test_nothing_is_public_and_nothing_is_secret(name: str) -> None:
    text = (CLUSTER / name).read_text()
    for public in ("0.0.0.0", "::/0", "LoadBalancer", "NodePort", "hostNetwork", "AssociatePublicIpAddress"):
        assert public not in text
    assert "RAY_AUTH_MODE=token" in text
    assert not re.search(r"AKIA[0-9A-Z]{12}|aws_secret|BEGIN [A-Z ]*PRIVATE KEY", text)
    for document in yaml.safe_load_all(text):
        for path, value in leaves(document):
            assert (
                not re.search(r"(token|password|secret)$", path, re.I) or value is False or str(value).startswith("~/")
            ), path
            assert not re.fullmatch(r"[0-9a-f]{32,}", str(value)), "looks like a token"
            assert not re.search(r"\d{12}\.dkr|iam::\d", str(value)), "an account's own number"
