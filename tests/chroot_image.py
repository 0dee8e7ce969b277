"""k8s/Dockerfile carried out without a container engine: each instruction in a chroot, as root.

What is left untried is the engine itself. For the base image stands a Debian of the same release with its own Python
3.11, made by debootstrap.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What an engine hands to a build besides: the network's names, certificates, proxies and pip's settings.
PASSED = re.compile(r"(?i)(https?_proxy|no_proxy|pip_\w+|ssl_cert_\w+|requests_ca_bundle)$")


def debian(folder: Path, release: str = "bookworm") -> Path:
    """A small Debian with Python 3.11, for python:3.11-slim-bookworm."""
    include = "ca-certificates,python3,python3-dev,python3-venv"  # the official image has headers as well
    # From the mirror that debootstrap knows.
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={include}", release, folder], check=True)
    return folder


@dataclass
class Stage:
    """A stage of the Dockerfile: its files, and how its processes start."""

    tree: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)

    def run(self, script: str, *, as_pod: bool = False) -> subprocess.CompletedProcess[str]:
        """A shell command inside, as a RUN of the build.

        `as_pod`: as the manifests run it, with the image's user, no rights that could be gained, a root file system
        that is read-only but for /tmp, the home folder and /mnt/imprint, and a network of its own.
        """
        inside = self.tree
        mounts = [f"mount -t proc proc {inside}/proc", f"mount --rbind /dev {inside}/dev"]
        if as_pod:
            mounts = [f"mount --bind {inside} {inside}", *mounts, "ip link set lo up"]
            for place in ("/tmp", self.env["HOME"], "/mnt/imprint"):
                mounts.append(f"mount -t tmpfs -o mode=0777 tmpfs {inside}{place}")
            mounts.append(f"mount -o remount,ro,bind {inside}")
        else:
            certificates = f"{inside}/etc/ssl/certs"
            mounts += [
                f"mount --bind -o ro /etc/resolv.conf {inside}/etc/resolv.conf",
                f"mount -t tmpfs tmpfs {certificates}", f"cp -a /etc/ssl/certs/. {certificates}",
            ]  # fmt: skip
        uid, gid = self.user.split(":") if as_pod else ("0", "0")
        rights = f"--reuid {uid} --regid {gid} --clear-groups" + (" --no-new-privs" if as_pod else "")
        if as_pod:
            rights += " --inh-caps=-all --bounding-set=-all"
        words = f"cd {shlex.quote(self.folder)} && {script}"
        inner = f"/usr/sbin/chroot {inside} /usr/bin/setpriv {rights} /bin/sh -ec {shlex.quote(words)}"
        outer = "\n".join([f"PATH={PATH}", *mounts, f"PATH={self.env['PATH']}", inner])
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", *(["--net", "--ipc", "--uts"] if as_pod else [])]
        environment = {**self.env, **({} if as_pod else {**passed(), **self.arguments})}
        return subprocess.run(
            ["unshare", *namespaces, "/bin/bash", "-ec", outer], env=environment, text=True, capture_output=True,
            check=False,
        )  # fmt: skip


def passed() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if PASSED.match(name)}


def build(base: Path, work: Path, *, variant: str = "cpu") -> Stage:
    """Carry out the Dockerfile's instructions and give back its last stage.

    `base` stays as it is, and so do stages that were finished in `work` before.

    Raises:
        RuntimeError: a RUN failed, or there is an instruction that is not known here.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    done = work
    for entry in DockerfileParser(str(ROOT / "k8s" / "Dockerfile"), build_args={"VARIANT": variant}).structure:
        kind, value = entry["instruction"], entry["value"]
        if kind == "COMMENT":
            continue
        if kind == "FROM":
            begins, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()  # type: ignore[union-attr]
            for argument, text in {**arguments, "VARIANT": variant}.items():
                begins = begins.replace(f"${{{argument}}}", text)
            done.touch()
            done = work / f"{name}.done"
            current = stages[name] = _begin(stages.get(begins), base, work / name, finished=done.exists())
        elif kind == "ARG" and current is None:
            arguments |= [value.split("=", 1)]
        else:
            assert current is not None
            if kind in ("COPY", "RUN") and done.exists():
                continue
            _carry_out(kind, value, current, stages)
    done.touch()
    assert current is not None
    return current


def _begin(before: Stage | None, base: Path, tree: Path, *, finished: bool) -> Stage:
    if not finished:
        shutil.rmtree(tree, ignore_errors=True)
        # Hard links: nothing writes into files that are there, package managers put new ones in their place.
        source = base if before is None else before.tree
        subprocess.run(["cp", "-a", *(["--link"] if before else []), source, tree], check=True)
    if before is None:
        return Stage(tree)
    return Stage(tree, dict(before.env), {}, before.folder, before.user, before.command)


def _carry_out(kind: str, value: str, stage: Stage, stages: dict[str, Stage]) -> None:
    match kind:
        case "ARG":
            name, _, default = value.partition("=")
            stage.arguments[name] = default
        case "ENV":
            stage.env |= dict(one.split("=", 1) for one in shlex.split(value))
        case "WORKDIR":
            stage.folder = value
            (stage.tree / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(value, stage, stages)
        case "RUN":
            done = stage.run(value)
            if done.returncode:
                raise RuntimeError(f"RUN {value}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-6000:]}")
        case "USER":
            stage.user = value
        case "CMD":
            stage.command = _strings(value)
        case _:
            raise RuntimeError(f"{kind} {value}: not an instruction that is known here")


def _strings(value: str) -> list[str]:
    return re.findall(r'"([^"]*)"', value)


def _copy(value: str, stage: Stage, stages: dict[str, Stage]) -> None:
    words = shlex.split(value)
    origin = ROOT
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")].tree
    *sources, target = words
    place = stage.tree / (target if target.startswith("/") else f"{stage.folder}/{target}").lstrip("/")
    for source in sources:
        for found in glob.glob(str(origin / source.lstrip("/"))):
            if not Path(found).is_dir():
                to = place / Path(found).name if target.endswith("/") else place
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, to)
            elif origin == ROOT:
                shutil.copytree(found, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", "--link", found, place], check=True)
