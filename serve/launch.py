"""`imprint serve`: the service on this machine, in a Ray of its own or one that runs here."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.config.load import load_document
from imprint.config.overrides import apply_overrides
from imprint.config.source import Document
from imprint.errors import ConfigError
from imprint.serve.settings import ServeSpec
from imprint.serve.tenants import Tenants, key_hash, new_key

CONFIG = Path(__file__).parent / "config.yaml"
LOCAL_TENANT = "local"


@dataclass(frozen=True)
class Plan:
    """What is to be served, and the key that was made where there was none."""

    args: Mapping[str, Any]
    name: str
    route: str
    host: str
    port: int
    timeout_s: float
    made_key: str | None


def plan(config: Path | None, overrides: list[str], *, host: str | None, port: int | None) -> Plan:
    """Read the file; nothing is started.

    Raises:
        ConfigError: the file is not one of Serve, or a key of it is wrong.
    """
    document = load_document(config or CONFIG)
    applications = document.data.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise ConfigError(f"{document.name}: expected one entry in applications, as in {CONFIG}")
    application = applications[0]
    own = Document(document.name, dict(application.get("args") or {}), {})
    args = dict(apply_overrides(own, overrides).data)
    made = None
    if not args.get("keys") and not args.get("keys_file"):
        made = new_key()
        args["keys"] = {LOCAL_TENANT: [key_hash(made)]}
    Tenants.of(validated(args, document.name))
    http = document.data.get("http_options") or {}
    return Plan(
        args, str(application.get("name", "imprint")), str(application.get("route_prefix", "/")),
        host or str(http.get("host", "127.0.0.1")), http.get("port", 8000) if port is None else port,
        float(http.get("request_timeout_s", 1800)), made,
    )  # fmt: skip


def validated(args: Mapping[str, Any], name: str) -> ServeSpec:
    """
    Raises:
        ConfigError: a key is wrong, with the nearest one that there is.
    """
    from imprint.config.load import validate

    return validate(Document(name, dict(args), {}), ServeSpec)


def serve_forever(planned: Plan) -> None:
    """Serve until interrupted."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from imprint.serve.deployments import build

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False, include_dashboard=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # drains and stops as Ctrl-C does
    options = HTTPOptions(host=planned.host, port=planned.port, request_timeout_s=planned.timeout_s)
    serve.start(http_options=options)
    serve.run(build(dict(planned.args)), name=planned.name, route_prefix=planned.route, blocking=True)
