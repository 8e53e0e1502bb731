"""What `mica status` says of containers."""

import os
from pathlib import Path

from mica.cli.runstatus import run_sections
from mica.run.runrecords import RECORD, RunRecord, format_record
from mica.run.scratch import open_run_directory


def test_a_container_that_runs_and_one_that_was_killed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "dead").mkdir(parents=True)
    (root / "dead" / RECORD).write_text(format_record(RunRecord("debian:12", "/run/mica", "", 7)))
    with open_run_directory(root, "alive", RunRecord("fedora:\x1b40", "", "/c")):
        (section,) = run_sections(tmp_path, None)
        ours = [fact for fact in section.facts if str(fact["directory"]).startswith(str(root))]
        assert [(fact["name"], fact["state"], fact["pid"]) for fact in ours] == [
            ("alive", "starting", os.getpid()), ("dead", "gone", None),
        ]  # fmt: skip
        things = {thing.title: thing.lines for thing in section.things}
        assert things["Container fedora:\\x1b40"]["process"] == os.getpid()
        assert things["Container fedora:\\x1b40"]["layers"] == "served by itself"
        assert things["Container fedora:\\x1b40"]["cache"] == "/c"
        assert things["Container debian:12"]["state"] == (
            f"its process is gone, nothing is mounted: mica doctor --state {tmp_path} removes it"
        )
    assert not run_sections(tmp_path, tmp_path)[0].things
