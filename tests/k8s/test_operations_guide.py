"""docs/operations.md names what is there."""

from __future__ import annotations

import re
import shlex

from kube_manifests import K8S, ROOT, of_kind, overlay
from typer.testing import CliRunner

from imprint.cli.app import app

GUIDE = (ROOT / "docs" / "operations.md").read_text()


def test_files_that_are_named_are_there() -> None:
    named = {one for one in re.findall(r"`((?:k8s|scripts|jobs|tests|docs)/[\w./-]+)`", GUIDE)}
    assert len(named) >= 8
    assert {one for one in named if not (ROOT / one).exists()} == set()
    files = set(re.findall(r"`([\w-]+\.yaml)`", GUIDE)) - {"secrets.yaml"}
    assert files
    assert {one for one in files if not list(K8S.rglob(one))} == set()


def test_alerts_and_their_remedies_are_those_of_the_rules() -> None:
    (rules,) = of_kind(overlay("prod"), "PrometheusRule")
    alerts = {
        rule["alert"]: rule["annotations"]["summary"] for group in rules["spec"]["groups"] for rule in group["rules"]
    }
    assert set(re.findall(r"^\| (Imprint\w+) \|", GUIDE, re.MULTILINE)) == set(alerts)
    headings = set(re.findall(r"^\*\*(.+?)\.\*\*", GUIDE, re.MULTILINE))
    pointed = set(re.findall(r"\| \*(.+?)\* \|", GUIDE))
    assert pointed
    assert pointed <= headings
    assert {text.rpartition("operations.md, ")[2] for text in alerts.values() if "operations.md" in text} <= headings


def test_objects_that_commands_name_are_there() -> None:
    manifests = overlay("prod")
    names = {one["metadata"]["name"] for one in manifests}
    names |= {one["spec"]["serveService"]["metadata"]["name"] for one in of_kind(manifests, "RayService")}
    names |= {f"{one['metadata']['name']}-head-svc" for one in of_kind(manifests, "RayCluster")}  # KubeRay makes it
    names |= {f"{one['metadata']['name']}-0" for one in of_kind(manifests, "StatefulSet")}
    before = r"(?:svc|deployment|(?:rayservice|raycluster|exec(?: -i)?) -n imprint)"
    named = set(re.findall(before + r"[/ ](imprint[\w-]*)", GUIDE))
    assert len(named) >= 6
    assert named - names == set()


def test_commands_of_imprint_are_valid() -> None:
    lines = re.findall(r"^ *(imprint submit jobs/\S+ --kube[^#\n]*)", GUIDE, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        _, *arguments = shlex.split(line)
        arguments[1] = str(ROOT / arguments[1])
        result = CliRunner().invoke(app, [*arguments, "--dry-run"])
        assert result.exit_code == 0, (line, result.output)
