"""`moray k8s diagnose`: what is in the bundle, what is named as missing, and what must never be in it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml
from cluster_objects import cluster_of, pod
from fake_api import PODS, answering
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ops import cli
from ops.k8s import redaction

SECRET = "xyzzy-do-not-tell"


@pytest.fixture
def moray(kubeconfig: Path):
    def run(*arguments: str):
        return CliRunner().invoke(cli.app, ["k8s", "diagnose", *arguments, "--kubeconfig", str(kubeconfig)])

    return run


def contents(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        parts = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        return {name: part.read().decode() for name, part in parts.items() if part is not None}


def test_the_bundle(server, gateway, moray, tmp_path):
    cluster_of(server, "a")
    serving = gateway("r1")
    server.put("/version", {"gitVersion": "v1.20.2"})
    secretive = pod("worker-1", "a", "10.0.0.1")
    secretive["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": SECRET, "note": "kept"}
    secretive["metadata"]["managedFields"] = [{"manager": SECRET}]
    secretive["spec"]["containers"][0]["env"] = [
        {"name": "HF_TOKEN", "value": SECRET},
        {"name": "SOME_OPTION", "value": SECRET},
        {"name": "RAY_PORT", "value": "6379"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "moray-key", "key": "api-key"}}},
    ]
    secretive["status"]["containerStatuses"] = [{"name": "ray", "restartCount": 2}]
    server.put(f"{PODS}/worker-1", secretive)
    log = b"started\nAuthorization: Bearer " + SECRET.encode() + b"\nredis://:" + SECRET.encode() + b"@redis:6379\n"
    server.fail("GET", "worker-1/log", lambda request: request.say(200, log) or True, times=2)
    server.fail("GET", "moray-head/log", answering(403, "Forbidden", 'cannot get resource "pods/log"'))
    serving.targets = [{"targets": ["10.0.0.1:8080", "10.9.9.9:1"], "labels": {"job": "ray"}}]
    server.proxied["worker-1:8080"] = ("127.0.0.1", serving.port)
    file = tmp_path / "bundle.tar.gz"
    done = moray("-o", str(file), "--url", serving.url, "--log-lines", "77")
    assert done.exit_code == 0, (done.output, done.exception)
    assert file.stat().st_mode & 0o777 == 0o600
    parts = contents(file)
    assert {"rayservice.json", "pods.json", "nodes.json", "events.json", "gateway/status.json"} <= parts.keys()
    assert "started" in parts["logs/worker-1/ray.log"] and "logs/worker-1/ray.previous.log" in parts
    assert parts["metrics/worker-1-8080.txt"] == "some_metric 1\n"
    assert 'logs/moray-head/ray.log: a permission is lacking: cannot get resource "pods/log"' in parts["MISSING.txt"]
    assert "raycluster-moray-abc.json" in parts["MISSING.txt"]
    assert not any(SECRET in text for text in parts.values()), [name for name, text in parts.items() if SECRET in text]
    assert '"6379"' in parts["pods.json"] and "moray-key" in parts["pods.json"] and '"kept"' in parts["pods.json"]
    assert server.asked_for(f"{PODS}/worker-1/log", tailLines="77", container="ray", previous="true")
    assert not any("secrets" in path for _, path, _ in server.asked)


def test_without_a_gateway_its_parts_are_missing(server, moray, tmp_path):
    cluster_of(server, "a")
    file = tmp_path / "b.tar.gz"
    assert moray("-o", str(file)).exit_code == 0
    said = contents(file)["MISSING.txt"]
    assert "gateway/status.json: namespace moray has no Service" in said and "gateway/targets.json" in said


def test_a_file_that_cannot_be_written(server, gateway, moray, tmp_path):
    cluster_of(server, "a")
    done = moray("-o", str(tmp_path / "no" / "such" / "b.tar.gz"), "--url", gateway("r1").url)
    assert "--output" in str(done.exception)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"curl -H 'x-api-key: {SECRET}'",
        f'{{"api_key": "{SECRET}"}}',
        f"MORAY_API_KEY={SECRET}",
        f"redis://user:{SECRET}@host:6379/0",
        f"aws_secret_access_key = {SECRET}",
        f"--redis-password={SECRET}",
        f"--redis-password {SECRET}",
        f"vllm serve --api-key {SECRET}",
        f"vllm serve --api-key 'a {SECRET}'",
        f"started with ['--api-key', '{SECRET}']",
        f'started with ["--tls-key", "{SECRET}"]',
        f'api_key: "{SECRET}',
        f"api_key=['{SECRET}']",
        f"api_keys: [a, '{SECRET}']",
        f'api_key=["{SECRET}"]',
        f'{{"message": "{{\\"api_key\\": \\"{SECRET}\\"}}"}}',
        f'{{\\"api_key\\": \\"a {SECRET}\\"}}',
        f"HF_TOKEN={SECRET}",
        f"HF_TOKEN: {SECRET}",
        f"password='a,{SECRET}'",
        f'"password": "a\\"{SECRET}"',
        f"redis://:p@{SECRET}@host:6379",
        "AKIAIOSFODNN7EXAMPLE",
        "hf_" + "a" * 34,
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_keys_in_texts(text):
    said = redaction.text(f"before\n{text}\nafter")
    assert SECRET not in said and said.startswith("before\n") and said.endswith("\nafter") and redaction.GONE in said
    assert "EXAMPLE" not in said and "MIIEow" not in said and "eyJ" not in said and "aaaa" not in said


@pytest.mark.parametrize("one", ["a", "-", "a-", "://", "https", 'password="', "\\", "--key ", "eyJ"])
def test_long_lines_take_no_long_time(one):
    redaction.text(one * (200_000 // len(one)))  # minutes, where a pattern is quadratic


def test_figures_stay():
    kept = {"kv_tokens_granted": 12, "max_tokens": 512, "secretName": "moray-key", "tokenExpirationSeconds": 3600}
    assert redaction.thing(kept) == kept
    for said in (
        "1200 tokens in, kv_tokens: 9",
        "eos_token_id: 5",
        "max_tokens=7",
        "--max-tokens 7",
        "http://a:80/b@c",
    ):
        assert redaction.text(said) == said
    assert redaction.thing({"args": ["--max-tokens", "7", "--port", "8"]})["args"] == [
        "--max-tokens",
        "7",
        "--port",
        "8",
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"api_key": [SECRET]},
        {"gateway": {"api_keys": ["a", SECRET]}},
        {"args": ["serve", "--api-key", SECRET]},
        {"command": ["ray", f"--redis-password={SECRET}"]},
        {"runtime_env": {"env_vars": {"SOME_OPTION": SECRET}}},
        {"serveConfigV2": f"applications:\n- runtime_env:\n    env_vars: {{SOME_OPTION: {SECRET}}}\n"},
        {"serveConfigV2": f"a: [\nHF_TOKEN: {SECRET}\n"},
        {"serveConfigV2": f"password={SECRET}"},
        {"serveConfigV2": f"a: 2026-99-99\nHF_TOKEN: {SECRET}"},
        {"serveConfigV2": f"a: &a [*a]\nHF_TOKEN: {SECRET}"},
        {"serveConfigV2": f"1: 2\nHF_TOKEN: {SECRET}"},
    ],
)
def test_keys_in_objects(value):
    said = str(redaction.thing(value))
    assert SECRET not in said and redaction.GONE in said


def test_a_serve_config_stays_readable():
    told = redaction.thing({"serveConfigV2": "applications:\n- name: moray\n  args: {max_num_seqs: 64}\n"})
    assert yaml.safe_load(told["serveConfigV2"]) == {"applications": [{"name": "moray", "args": {"max_num_seqs": 64}}]}


def test_a_bundle_that_was_there_is_its_owners_alone_again(server, gateway, moray, tmp_path):
    cluster_of(server, "a")
    file = tmp_path / "b.tar.gz"
    file.touch(mode=0o644)
    file.chmod(0o644)
    assert moray("-o", str(file), "--url", gateway("r1").url).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600


def test_contents_of_secrets_and_settings():
    secret = {"kind": "Secret", "data": {"api-key": SECRET}}
    assert redaction.thing(secret)["data"] == {"api-key": redaction.GONE}
    redis = {"gcsFaultToleranceOptions": {"redisPassword": {"value": SECRET}}}
    assert SECRET not in str(redaction.thing(redis))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["env", "env_vars", "args", "serveConfigV2", "data", "a", "token", "value"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(JSON)
def test_any_object_can_be_redacted_once_and_for_all(value):
    once = redaction.thing(value)
    assert redaction.thing(once) == once
