"""A real Kubernetes API server for tests: kube-apiserver and etcd, on free ports of the loopback interface.

Nothing else of Kubernetes runs: no kubelet, scheduler, controller manager or operator. So pods stay Pending and, on a
node, are gone only once deleted with a grace period of 0; a namespace is never deleted for good, the deletion of an
owner takes nothing with it, and no service account comes by itself. What is here is the API itself: storage,
validation by schema, server-side apply, watches, RBAC, leases.
"""

from __future__ import annotations

import os
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import helm_releases
import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client, config

from experts.linux import die_with_parent
from ops.own_session import free_port

VERSION = "1.20.2"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moray"
SERVER = _CACHE / f"kube-apiserver-{VERSION}"  # scripts/build-kube-apiserver writes both
ETCD = _CACHE / "etcd"
_LIMIT_S = 60  # to start, which takes 5 s on an idle machine, and for a request
_POLL_S = 0.05


class ApiServer:
    """The API server; its state outlives `restart`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._etcd_url, self._peer_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._port = free_port()
        self._admin_token = secrets.token_hex(16)
        self._certificate = directory / "certificates/apiserver.crt"
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"https://127.0.0.1:{self._port}"
        self.kubeconfig = directory / "kubeconfig"  # of an administrator, for helm and `moray k8s`

    def start(self) -> None:
        """Returns when the API answers. Raises RuntimeError with the program's last words if it ends instead."""
        (self._directory / "tokens.csv").write_text(f'{self._admin_token},admin,admin,"system:masters"\n')
        _write_key(self._directory / "service-accounts.pem")
        self.kubeconfig.touch(mode=0o600)  # Helm warns of one that others can read
        self.kubeconfig.write_text(yaml.safe_dump(self.kubeconfig_of(self._admin_token)))
        self._etcd = self._run(
            "etcd",
            ETCD,
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={self._peer_url}",
            f"--initial-advertise-peer-urls={self._peer_url}",
            f"--initial-cluster=default={self._peer_url}",
        )
        self._start_server()

    def restart(self) -> None:
        """As after a crash: connections break, watches end, and what a watch missed before is answered with 410."""
        assert self._server is not None
        _kill(self._server)
        self._start_server()

    def stop(self) -> None:
        for process in (self._server, self._etcd):
            if process is not None:
                _kill(process)

    def client(self) -> client.ApiClient:
        """For an administrator, who may do everything."""
        return self.as_user(self._admin_token)

    def as_user(self, token: str) -> client.ApiClient:
        loaded: client.ApiClient = config.new_client_from_config_dict(self.kubeconfig_of(token), persist_config=False)
        return loaded

    def service_account_client(self, namespace: str, name: str) -> client.ApiClient:
        """For what runs in a pod of this service account, with a token as the kubelet would ask for it."""
        return self.as_user(self.service_account_token(namespace, name))

    def service_account_token(self, namespace: str, name: str) -> str:
        """Valid for an hour. Raises kubernetes' ApiException (404) where the service account does not exist."""
        asked = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600)
        )
        with self.client() as admin:
            answer = client.CoreV1Api(admin).create_namespaced_service_account_token(name, namespace, asked)
        token: str = answer.status.token
        return token

    def http(self, token: str | None = None) -> httpx.Client:
        """Plain requests, whose answers are as the server gives them; without a token as an administrator."""
        headers = {"Authorization": f"Bearer {token or self._admin_token}"}
        verify = ssl.create_default_context(cafile=self._certificate)
        return httpx.Client(base_url=self.url, headers=headers, verify=verify, timeout=_LIMIT_S, trust_env=False)

    def helm(self, version: str, namespace: str) -> helm_releases.Helm:
        """Skips the test if this version of Helm is not installed."""
        return helm_releases.helm(version, self.kubeconfig, namespace)

    def kubeconfig_of(self, token: str) -> dict[str, Any]:
        """The content of a kubeconfig file."""
        cluster = {"server": self.url, "certificate-authority": str(self._certificate)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }

    def _start_server(self) -> None:
        key = self._directory / "service-accounts.pem"
        self._server = self._run(
            "kube-apiserver",
            SERVER,
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self._certificate.parent}",  # it signs a certificate for itself
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            # It waits for a token that the controller manager, which does not run, would have made.
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",  # that of its own Service refuses the loopback address
        )
        deadline = time.monotonic() + _LIMIT_S
        while not self._is_ready():
            for process in (self._etcd, self._server):
                if process is not None and process.poll() is not None:
                    raise RuntimeError(self._last_words(f"{process.args[0]} ended with {process.returncode}"))
            if time.monotonic() > deadline:
                raise RuntimeError(self._last_words(f"the API server was not ready within {_LIMIT_S} s"))
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        """Asked without a token and unverified, for its certificate is written only as it starts."""
        try:
            return httpx.get(f"{self.url}/readyz", verify=False, timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _run(self, name: str, program: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=partial(die_with_parent, os.getpid()),  # also when the test run is killed
            )

    def _last_words(self, what: str) -> str:
        logs = (self._directory / f"{name}.log" for name in ("etcd", "kube-apiserver"))
        return "\n".join([what, *(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())])


@contextmanager
def running(directory: Path) -> Iterator[ApiServer]:
    """An API server whose files are in this directory, and which is gone when the context is left."""
    server = ApiServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _write_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
