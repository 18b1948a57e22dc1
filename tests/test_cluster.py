"""The cluster files are what Ray and KubeRay accept, authenticate with a token, and expose nothing."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "cluster"
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
    "envFrom", "volumeMounts",
}  # fmt: skip


def aws() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "aws.yaml").read_text())


def kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    account, job = yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text())
    return account, job


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


def test_the_aws_file_passes_what_ray_up_checks_before_it_calls_aws() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(aws()))
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu"}, "Ray has added no default node type"


def test_the_aws_pools_start_at_nothing_and_only_the_head_is_on_demand() -> None:
    config = aws()
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for pool in ("cpu", "gpu"):
        assert types[pool]["min_workers"] == 0
        assert types[pool]["max_workers"] > 0
        assert types[pool]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["max_workers"] >= types["cpu"]["max_workers"] + types["gpu"]["max_workers"]
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
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_rayjob_has_only_fields_that_kuberay_knows() -> None:
    account, job = kuberay()
    assert (account["apiVersion"], account["kind"]) == ("v1", "ServiceAccount")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= JOB_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= GROUP_FIELDS
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())


def test_the_rayjob_demands_a_token_and_is_reachable_from_inside_only() -> None:
    cluster = kuberay()[1]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}, "KubeRay sets RAY_AUTH_MODE=token and RAY_AUTH_TOKEN from it"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "the first Ray with token authentication"


def test_the_rayjob_has_a_cpu_pool_and_a_spot_gpu_pool_that_start_at_nothing() -> None:
    cluster = kuberay()[1]["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu-spot"}
    for group in groups.values():
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", group["groupName"])
    pod = groups["gpu-spot"]["template"]["spec"]
    assert "SPOT" in pod["nodeSelector"].values()
    assert {"nvidia.com/gpu"} == {toleration["key"] for toleration in pod["tolerations"]}
    assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0
    assert "nodeSelector" not in groups["cpu"]["template"]["spec"]


def test_every_pod_of_the_rayjob_is_bounded_and_unprivileged() -> None:
    account, job = kuberay()
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_rayjob_runs_the_pipeline_and_cleans_up_after_itself() -> None:
    spec = kuberay()[1]["spec"]
    assert spec["entrypoint"].startswith("python -m jobs.pipeline configs/")
    assert "root=s3://" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["backoffLimit"] > 0, "resume is the same command, so a retry is one"


def test_one_version_of_ray_is_named_everywhere() -> None:
    project = (CLUSTER.parent / "pyproject.toml").read_text()
    assert f"=={RAY}.*" in project
    assert re.search(
        rf"^FROM rayproject/ray:{re.escape(RAY)}\.\d+-py311-gpu$", (CLUSTER / "Dockerfile").read_text(), re.M
    )
    assert kuberay()[1]["spec"]["rayClusterSpec"]["rayVersion"].startswith(RAY)


@pytest.mark.parametrize("name", ["aws.yaml", "kuberay-rayjob.yaml"])
def test_nothing_is_public_and_nothing_is_secret(name: str) -> None:
    text = (CLUSTER / name).read_text()
    for public in ("0.0.0.0", "::/0", "LoadBalancer", "NodePort", "hostNetwork", "AssociatePublicIpAddress"):
        assert public not in text
    assert "RAY_AUTH_MODE=token" in text
    assert not re.search(r"AKIA[0-9A-Z]{12}|aws_secret|BEGIN [A-Z ]*PRIVATE KEY", text)
    for document in yaml.safe_load_all(text):
        for path, value in leaves(document):
            assert not re.search(r"(token|password|secret)$", path, re.I) or str(value).startswith("~/"), path
            assert not re.fullmatch(r"[0-9a-f]{32,}", str(value)), "looks like a token"
            assert not re.search(r"\d{12}\.dkr|iam::\d", str(value)), "an account's own number"
