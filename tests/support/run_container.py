"""Runs one request, given as JSON on the command line, in a process of its own: what `mica run` will do."""

import json
import sys
from pathlib import Path
from typing import Any

from mica.errors import MicaError
from mica.layers.stack import LayerStack
from mica.run.container import run_container
from mica.run.request import RunOptions, RunRequest, parse_volume


def parse_options(values: dict[str, Any]) -> RunOptions:
    for key in ("command", "env"):
        values[key] = tuple(values.get(key, ()))
    values["volumes"] = tuple(parse_volume(text) for text in values.get("volumes", ()))
    if "keep" in values:
        values["keep"] = Path(values["keep"])
    return RunOptions(**values)


def main() -> int:
    asked = json.loads(sys.argv[1])
    try:
        request = RunRequest(
            LayerStack(tuple(map(Path, asked["layers"]))), asked["config"], parse_options(asked["options"])
        )
        return run_container(request, root=Path(asked["root"]), runc=asked["runc"])
    except MicaError as error:
        sys.stderr.write(f"{type(error).__name__}: {error} [{error.hint}]\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
