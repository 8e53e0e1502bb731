"""The runtime configuration (config.json of the OCI runtime specification) of one container.

Pure: values in, a dictionary out. It starts no container (`container.py`) and reads no file. The defaults are those
of Docker; where they differ, a comment says so. Any thread.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mica.run.request import Network, Process, Volume
from mica.run.seccomp import format_seccomp
from mica.run.user import User

OCI_VERSION: Final = "1.0.2"

CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip

_MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class SpecOptions:
    """All that is decided before the container exists.

    rootfs: the mounted union.
    files: host files shown at a path of the container, writable there (/etc/hosts and such; copies, never the host's).
    cgroup: its control group, or None where the host lets us have none. Without one there is no device filter, hence
        no CAP_MKNOD either, and the union must be mounted nodev.
    machine: as uname(2) says it.
    """

    process: Process
    user: User
    rootfs: Path
    hostname: str
    network: Network = "host"
    read_only: bool = False
    volumes: tuple[Volume, ...] = ()
    files: tuple[tuple[Path, str], ...] = ()
    cgroup: str | None = None
    machine: str = "x86_64"


def format_spec(options: SpecOptions) -> dict[str, Any]:
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(options),
        "root": {"path": str(options.rootfs), "readonly": options.read_only},
        "hostname": options.hostname,
        "mounts": [*_system_mounts(options), *_file_mounts(options), *_volume_mounts(options)],
        "linux": _linux(options),
    }


def _process(options: SpecOptions) -> dict[str, Any]:
    process, user = options.process, options.user
    has_home = any(item.startswith("HOME=") for item in process.env)
    return {
        "terminal": process.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": list(process.args),
        "env": [*process.env, *([] if has_home else [f"HOME={user.home}"])],
        "cwd": process.cwd,
        "capabilities": _capabilities(options),
        # As Docker: sudo and ping with file capabilities work in containers.
        "noNewPrivileges": False,
    }


def _capabilities(options: SpecOptions) -> dict[str, list[str]]:
    granted = [name for name in CAPABILITIES if options.cgroup is not None or name != "CAP_MKNOD"]
    if options.user.uid != 0:
        # As execve(2) leaves them for a user that is not root; a set-user-id program gets them back.
        return {"bounding": granted}
    return {"bounding": granted, "effective": granted, "permitted": granted}


def _system_mounts(options: SpecOptions) -> list[dict[str, Any]]:
    mounts = [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),  # noqa: S108
    ]
    if options.cgroup is not None:
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"))
    return mounts


def _mount(target: str, fstype: str, *flags: str, source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": fstype, "source": source or fstype, "options": list(flags)}


def _file_mounts(options: SpecOptions) -> list[dict[str, Any]]:
    taken = {volume.target for volume in options.volumes}
    return [
        _mount(target, "bind", "rbind", "rprivate", source=str(source))
        for source, target in options.files
        if target not in taken
    ]


def _volume_mounts(options: SpecOptions) -> list[dict[str, Any]]:
    """Outer mounts first, or they would hide the inner ones."""
    return [
        # rro: also the mounts below the source are read-only (Linux 5.12).
        _mount(
            volume.target,
            "bind",
            "rbind",
            "rprivate",
            *(("ro", "rro") if volume.read_only else ("rw",)),
            source=str(volume.source),
        )
        for volume in sorted(options.volumes, key=lambda volume: volume.target.count("/"))
    ]


def _linux(options: SpecOptions) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount", *(["network"] if options.network == "none" else [])]
    settings: dict[str, Any] = {
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
        "seccomp": format_seccomp(options.machine),
    }
    if options.cgroup is not None:
        kinds.append("cgroup")
        settings["cgroupsPath"] = options.cgroup
        # runc adds the harmless devices (null, zero, random, tty, pts) by itself.
        settings["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    return settings | {"namespaces": [{"type": kind} for kind in kinds]}
