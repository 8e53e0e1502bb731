"""The system calls that a container does not get: a short list of dangerous calls, not a long list of harmless ones.

Docker's profile allows some 350 calls by name and has to grow with every kernel and C library; programs that use newer
calls fail in odd ways. Here all calls are allowed except those that reach outside the container. Two groups: calls that
need no capability, where this list is the only barrier, and calls behind a capability that we do not give anyway, as a
second barrier. Other calls that Docker forbids are harmless within namespaces or refused for lack of a capability.
Pure.
"""

from typing import Any, Final

# Needs no capability. Keys are not in a namespace; bpf, perf, userfaultfd and io_uring are where local root exploits
# come from, and Docker denies them too; syslog shows the host's kernel log.
_WITHOUT_CAPABILITY: Final = (
    "add_key", "keyctl", "request_key",
    "bpf", "perf_event_open", "userfaultfd",
    "io_uring_enter", "io_uring_register", "io_uring_setup",
    "kcmp", "lookup_dcookie", "syslog",
)  # fmt: skip

# Behind CAP_SYS_ADMIN, _BOOT, _MODULE, _TIME, _PACCT, _RAWIO or _DAC_READ_SEARCH. open_by_handle_at is the call that
# once read the host's /etc/shadow from a Docker container.
_BEHIND_CAPABILITY: Final = (
    "acct", "clock_settime", "clock_settime64", "create_module", "delete_module", "finit_module", "init_module",
    "ioperm", "iopl", "kexec_file_load", "kexec_load", "nfsservctl", "open_by_handle_at", "quotactl", "quotactl_fd",
    "reboot", "setns", "settimeofday", "stime", "swapoff", "swapon", "uselib", "ustat", "vhangup",
)  # fmt: skip

_CLONE_NEWUSER: Final = 0x10000000
_AF_VSOCK: Final = 40
_EPERM, _ENOSYS = 1, 38

# A filter must name the other ABIs of the processor too, or they are a way around it.
_ARCHITECTURES: Final = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "ppc64le": ["SCMP_ARCH_PPC64LE"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
}


def format_seccomp(machine: str) -> dict[str, Any]:
    """The `linux.seccomp` object of a runtime configuration; `machine` as uname(2) says it."""
    profile: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            _denied([*_WITHOUT_CAPABILITY, *_BEHIND_CAPABILITY]),
            # In a user namespace of its own a program has all capabilities over namespaced parts of the kernel.
            _denied(["unshare"], _has_bits(0, _CLONE_NEWUSER)),
            _denied(["clone"], _has_bits(1 if machine == "s390x" else 0, _CLONE_NEWUSER)),
            # clone3's flags lie in memory, which a filter cannot read. On ENOSYS C libraries use clone instead.
            _denied(["clone3"], errno=_ENOSYS),
            # Virtual machine sockets are in no namespace and lead to the hypervisor.
            _denied(["socket"], {"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_EQ"}),
        ],
    }
    if machine in _ARCHITECTURES:
        profile["architectures"] = _ARCHITECTURES[machine]
    return profile


def _denied(names: list[str], argument: dict[str, Any] | None = None, *, errno: int = _EPERM) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    return rule | ({"args": [argument]} if argument else {})


def _has_bits(index: int, bits: int) -> dict[str, Any]:
    return {"index": index, "value": bits, "valueTwo": bits, "op": "SCMP_CMP_MASKED_EQ"}
