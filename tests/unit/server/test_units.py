"""Units as systemd reads them."""

import subprocess
from pathlib import Path

from tests.support.tools import need

from mica.server.units import enabling, units


def test_systemd_takes_them(tmp_path: Path) -> None:
    analyze = need("systemd-analyze", "systemd")
    program = tmp_path / "my mica"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    texts = units([str(program), "100%", "$x"], {"MICA_STATE": "/srv/a $b"}, "daemon")
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    names = [name.replace("@", "@images.example.org") for name in texts]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in names)],
        capture_output=True, text=True, check=False, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert str(tmp_path) not in done.stderr
    assert "Environment='MICA_STATE=/srv/a $b'\n" in texts["mica-resign@.service"]
    assert f"ExecStart='{program}' 100%% '$$x' repo resign %i --within 10\n" in texts["mica-resign@.service"]
    assert "User=daemon\n" in texts["mica-server-status.service"]


def test_what_starts_them_names_them() -> None:
    line = enabling("images.example.org")
    for name in units(["mica"], {}, None):
        if name.endswith(".timer"):
            assert name.replace("@", "@images.example.org") in line
