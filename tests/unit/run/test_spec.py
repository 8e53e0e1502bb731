"""The runtime configuration that runc gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from mica.run.request import Process, Volume
from mica.run.seccomp import format_seccomp
from mica.run.spec import CAPABILITIES, SpecOptions, format_spec
from mica.run.user import User

ROOT, WEB = User(0, 0, (0,), "/root"), User(33, 34, (34, 29), "/srv")


def spec(*, env: tuple[str, ...] = ("A=1",), user: User = ROOT, **options: Any) -> dict[str, Any]:
    process = Process(args=("sh",), env=env, cwd="/w", user="", tty=bool(options.pop("tty", False)))
    return format_spec(SpecOptions(process, user, Path("/r/rootfs"), "box", **options))


def targets(found: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in found["mounts"]]


def test_process() -> None:
    process = spec(user=WEB, tty=True, cgroup="/c")["process"]
    assert process["args"] == ["sh"]
    assert process["cwd"] == "/w"
    assert process["terminal"] is True
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [34, 29]}
    assert process["env"] == ["A=1", "HOME=/srv"]
    assert spec(env=("HOME=/mine",))["process"]["env"] == ["HOME=/mine"]
    assert process["noNewPrivileges"] is False


def test_capabilities_are_dockers() -> None:
    assert len(CAPABILITIES) == 14
    root = spec(cgroup="/c")["process"]["capabilities"]
    assert root["effective"] == root["permitted"] == root["bounding"] == list(CAPABILITIES)
    assert "inheritable" not in root  # CVE-2022-24769
    assert "ambient" not in root
    assert spec(user=WEB, cgroup="/c")["process"]["capabilities"] == {"bounding": list(CAPABILITIES)}


def test_without_a_device_filter_nobody_makes_devices() -> None:
    found = spec(cgroup=None)
    assert all("CAP_MKNOD" not in names for names in found["process"]["capabilities"].values())
    assert "/sys/fs/cgroup" not in targets(found)
    assert "cgroupsPath" not in found["linux"]
    assert {"type": "cgroup"} not in found["linux"]["namespaces"]


def test_with_a_group_all_devices_are_denied_first() -> None:
    found = spec(cgroup="/mica-1")
    assert found["linux"]["cgroupsPath"] == "/mica-1"
    assert found["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "ro" in next(m for m in found["mounts"] if m["destination"] == "/sys/fs/cgroup")["options"]


def test_namespaces() -> None:
    def kinds(**options: Any) -> set[str]:
        return {space["type"] for space in spec(**options)["linux"]["namespaces"]}

    assert kinds() == {"pid", "ipc", "uts", "mount"}
    assert kinds(network="none", cgroup="/c") == {"pid", "ipc", "uts", "mount", "network", "cgroup"}


def test_root_and_hostname() -> None:
    found = spec(read_only=True)
    assert found["root"] == {"path": "/r/rootfs", "readonly": True}
    assert found["hostname"] == "box"
    assert spec()["root"]["readonly"] is False


def test_sys_is_read_only_and_secrets_are_masked() -> None:
    found = spec()
    assert "ro" in next(m for m in found["mounts"] if m["destination"] == "/sys")["options"]
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(found["linux"]["maskedPaths"])
    assert "/proc/sys" in found["linux"]["readonlyPaths"]


def test_volumes_come_outer_first_and_replace_our_files() -> None:
    volumes = (
        Volume(Path("/h/in"), "/a/b", read_only=True),
        Volume(Path("/h/out"), "/a", read_only=False),
        Volume(Path("/h/hosts"), "/etc/hosts", read_only=False),
    )
    found = spec(volumes=volumes, files=((Path("/f/hosts"), "/etc/hosts"), (Path("/f/hostname"), "/etc/hostname")))
    assert targets(found)[-4:] == ["/etc/hostname", "/a", "/a/b", "/etc/hosts"]
    assert found["mounts"][-2]["options"] == ["rbind", "rprivate", "ro", "rro"]
    assert found["mounts"][-3]["options"] == ["rbind", "rprivate", "rw"]
    assert found["mounts"][-1]["source"] == "/h/hosts"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "s390x", "ppc64le", "unknown"])
def test_seccomp(machine: str) -> None:
    profile = format_seccomp(machine)
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    denied = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert {"bpf", "keyctl", "kexec_load", "open_by_handle_at", "clone3", "userfaultfd"} <= denied
    assert all(rule["action"] == "SCMP_ACT_ERRNO" and rule["errnoRet"] for rule in profile["syscalls"])
    assert ("architectures" in profile) == (machine != "unknown")
    # Whole families that programs need are only denied with certain arguments.
    assert all("args" in rule for rule in profile["syscalls"] if {"clone", "unshare", "socket"} & set(rule["names"]))


def test_it_is_json() -> None:
    assert json.loads(json.dumps(spec(cgroup="/c", tty=True)))["ociVersion"] == "1.0.2"
