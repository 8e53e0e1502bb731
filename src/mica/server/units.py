"""Units of systemd that look after repositories: timers for renewing the whitelist and for the status. Pure."""

import shlex
from collections.abc import Mapping, Sequence

RESIGN_WITHIN_DAYS = 10


def units(command: Sequence[str], environment: Mapping[str, str], user: str | None) -> dict[str, str]:
    """Names and texts. `command` is how mica is called, `user` who publishes; None for root."""
    run = " ".join(_escaped(word).replace("$", "$$") for word in command)
    settings = [f"User={user}"] if user else []
    settings += [f"Environment={_escaped(f'{name}={value}')}" for name, value in sorted(environment.items())]
    return {
        "mica-resign@.service": _service(
            "Renew the whitelist of %i if it expires soon",
            [*settings, f"ExecStart={run} repo resign %i --within {RESIGN_WITHIN_DAYS}"],
            # With the master key elsewhere it fails then, and its message says what to do: that is the reminder.
            "mica-repo-resign(1)",
        ),
        "mica-resign@.timer": _timer("Renew the whitelist of %i", "daily"),
        "mica-server-status.service": _service(
            "Check the repositories published here", [*settings, f"ExecStart={run} server status"],
            "mica-server-status(1)",
        ),
        "mica-server-status.timer": _timer("Check the repositories published here", "hourly"),
    }  # fmt: skip


def enabling(fqrn: str) -> str:
    """The command that starts them for a repository."""
    return f"systemctl enable --now mica-resign@{fqrn}.timer mica-server-status.timer"


def _service(description: str, settings: Sequence[str], page: str) -> str:
    return _text(
        [
            "[Unit]", f"Description={description}", f"Documentation=man:{page}", "Wants=network-online.target",
            "After=network-online.target", "", "[Service]", "Type=oneshot", *settings,
        ]
    )  # fmt: skip


def _timer(description: str, when: str) -> str:
    return _text(
        [
            "[Unit]", f"Description={description}", "", "[Timer]", f"OnCalendar={when}", "RandomizedDelaySec=20min",
            "Persistent=true", "", "[Install]", "WantedBy=timers.target",
        ]
    )  # fmt: skip


def _escaped(word: str) -> str:
    """As systemd.syntax(7) has it: quotes are a shell's, `%` is its own. In a command so is `$`."""
    return shlex.quote(word).replace("%", "%%")


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in ["# Written by `mica server init`.", *lines])
