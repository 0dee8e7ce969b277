"""What `imprint submit --kube` does with a cluster, by kubectl: it has the person's context, rights and plugins."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imprint.errors import ConfigError, ImprintError

POLL_S = 5.0
_PATIENCE = 12  # answers in a row that may fail before following is given up
_DONE = {"Complete": 0, "Failed": 1, "ValidationFailed": 1}
"""Ends of KubeRay's jobDeploymentStatus, and the exit codes that stand for them."""


@dataclass(frozen=True)
class Kubectl:
    """The command, and the context of the kubeconfig that it uses (null: the current one)."""

    command: str
    context: str | None = None

    @classmethod
    def find(cls, context: str | None = None) -> Kubectl:
        """
        Raises:
            ConfigError: kubectl is not on PATH.
        """
        command = shutil.which("kubectl")
        if command is None:
            raise ConfigError(
                "submitting with --kube: kubectl is not on PATH; install it, or write the manifests with --dry-run and "
                "apply them where it is"
            )
        return cls(command, context)

    def create(self, manifests: str) -> None:
        """Create what the YAML text names; nothing is overwritten.

        Raises:
            ImprintError: no cluster answers, or it refuses them.
        """
        self._run(["create", "-f", "-"], "creating the RayJob", manifests)

    def status(self, name: str, namespace: str) -> dict[str, Any]:
        """The status of a RayJob; empty until KubeRay (or the queue) has looked at it.

        Raises:
            ImprintError: no cluster answers, or the RayJob is gone.
        """
        said = self._run(["get", "rayjobs.ray.io", name, "-n", namespace, "-o", "json"], f"asking for RayJob {name}")
        found = json.loads(said)
        suspended = {"jobDeploymentStatus": "Suspended"} if found.get("spec", {}).get("suspend") else {}
        return suspended | dict(found.get("status") or {})

    def _run(self, arguments: list[str], doing: str, text: str | None = None) -> str:
        context = [] if self.context is None else ["--context", self.context]
        command = [self.command, *context, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"kubectl ended with {done.returncode}"])[-1]
            raise ImprintError(f"{doing}: {said}; {_remedy(said)}")
        return done.stdout


def _remedy(said: str) -> str:
    if "no matches for kind" in said or "doesn't have a resource type" in said:
        return "KubeRay's operator and its CRDs are missing; see docs/operations.md"
    if "Forbidden" in said or "forbidden" in said:
        return "ask for the right to create rayjobs.ray.io and configmaps in the namespace"
    if "AlreadyExists" in said or "already exists" in said:
        return "delete it, or choose another --name"
    if "namespaces" in said and "not found" in said:
        return "apply k8s/overlays/dev or prod first, or set kube.namespace"
    return "check `kubectl config current-context` and that the cluster answers"


def follow(kubectl: Kubectl, name: str, namespace: str, write: Callable[[str], None], poll_s: float = POLL_S) -> int:
    """Tell each change of a RayJob's state until it ends; return 0 where it succeeded, else 1.

    Raises:
        ImprintError: the cluster stopped answering; the job goes on without us.
    """
    told, failures = "", 0
    while True:
        try:
            status = kubectl.status(name, namespace)
            failures = 0
        except ImprintError as error:
            failures += 1
            if failures >= _PATIENCE:
                hint = f"the job may still run: kubectl get rayjob {name} -n {namespace}"
                raise ImprintError(f"{error.message}; {hint}") from error
            time.sleep(poll_s)
            continue
        state = str(status.get("jobDeploymentStatus") or "Waiting")
        now = f"{state}, {status['jobStatus']}" if status.get("jobStatus") else state
        if now != told:
            reason = status.get("message") or status.get("reason") or ""
            write(f"{name}: {now}{': ' + str(reason) if reason else ''}\n")
            told = now
        if state in _DONE:
            return _DONE[state] if status.get("jobStatus") in (None, "", "SUCCEEDED") else 1
        time.sleep(poll_s)
