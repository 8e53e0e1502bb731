"""Where this machine gets Debian packages from, for systems made by mmdebstrap."""

import subprocess


def package_sources(suite: str) -> str:
    """The machine's own sources of a Debian release, a line each; none leaves the choice to mmdebstrap."""
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    return "".join(f"{line}\n" for line in _listed() if line.split()[2] in wanted)


def mirror() -> str | None:
    """URL of an archive that has every Debian release; None if the machine has no source of packages."""
    return next((line.split()[1] for line in _listed() if "-" not in line.split()[2]), None)


def apt_options() -> str:
    """How the machine reaches its sources (proxies, checks of dates), as a configuration file of apt."""
    roots = ("http", "https", "Check-Valid-Until", "Check-Date", "Languages", "Retries")
    return _output(
        "apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', *(f"Acquire::{name}" for name in roots)
    )


def _listed() -> list[str]:
    listed = _output("apt-get", "indextargets", "Created-By: Packages", "--format",
                     "deb $(REPO_URI) $(RELEASE) $(COMPONENT)")  # fmt: skip
    return list(dict.fromkeys(line for line in listed.splitlines() if line.split()[3] == "main"))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
