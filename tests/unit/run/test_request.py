"""How an image's config and the user's options combine; rules of `docker run`."""

from pathlib import Path
from typing import Any

import pytest

from mica.errors import MicaError, UsageError, UserError
from mica.run.request import (
    PATH,
    Process,
    RunOptions,
    Volume,
    check_hostname,
    check_name,
    parse_env_file,
    parse_volume,
    plan_process,
    resolve_env,
)

BOTH = {"Entrypoint": ["entry", "-e"], "Cmd": ["cmd"]}


def plan(config: dict[str, Any], **options: Any) -> Process:
    return plan_process({"Cmd": ["true"]} | config, RunOptions(**options), hostname="box")


@pytest.mark.parametrize(
    ("config", "options", "args"),
    [
        ({"Cmd": ["a", "b"]}, {}, ("a", "b")),
        (BOTH, {}, ("entry", "-e", "cmd")),
        (BOTH, {"command": ("x", "y")}, ("entry", "-e", "x", "y")),
        (BOTH, {"entrypoint": "other"}, ("other",)),
        (BOTH, {"entrypoint": "other", "command": ("x",)}, ("other", "x")),
        (BOTH, {"entrypoint": "", "command": ("x",)}, ("x",)),
        ({"Entrypoint": None, "Cmd": ["a", ""]}, {}, ("a", "")),
        ({"Entrypoint": "echo -n", "Cmd": ["a"]}, {}, ("echo -n", "a")),
        ({"Entrypoint": ["echo"], "Cmd": "a b"}, {}, ("echo", "a b")),
        ({"Entrypoint": "", "Cmd": "a"}, {}, ("a",)),
    ],
)
def test_command(config: dict[str, Any], options: dict[str, Any], args: tuple[str, ...]) -> None:
    assert plan_process(config, RunOptions(**options), hostname="box").args == args


@pytest.mark.parametrize(
    ("config", "options"), [({}, {}), ({"Cmd": []}, {}), (BOTH, {"entrypoint": ""}), ({"Cmd": [""]}, {})]
)
def test_no_command(config: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="There is no command"):
        plan_process(config, RunOptions(**options), hostname="box")


def test_environment() -> None:
    assert plan({}).env == (f"PATH={PATH}", "HOSTNAME=box")
    assert plan({}, tty=True).env == (f"PATH={PATH}", "HOSTNAME=box", "TERM=xterm")
    config = {"Env": ["PATH=/p", "A=1", "B=x=y", "=bad", "EMPTY"]}
    assert plan(config, env=("A=2", "A=3")).env == ("PATH=/p", "HOSTNAME=box", "A=3", "B=x=y", "EMPTY=")


@pytest.mark.parametrize(
    ("workdir", "cwd"), [("", "/"), ("srv", "/srv"), ("/a/../..//b/", "/b"), ("//x", "/x"), ("../../etc", "/etc")]
)
def test_working_directory_of_the_image(workdir: str, cwd: str) -> None:
    assert plan({"WorkingDir": workdir}).cwd == cwd


def test_options_win() -> None:
    process = plan({"WorkingDir": "/image", "User": "image"}, workdir="/mine", user="me:us")
    assert (process.cwd, process.user) == ("/mine", "me:us")
    assert plan({"User": "image"}).user == "image"
    assert plan({"User": "image"}, user="").user == ""


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        ({"Cmd": {"sh": 1}}, {}, "Cmd is not a list"),
        ({"Env": {"A": "1"}}, {}, "Env is not a list"),
        ({"Entrypoint": [1]}, {}, "Entrypoint is not a list"),
        ({"User": 0}, {}, "User is not a string"),
        ({"WorkingDir": []}, {}, "WorkingDir is not a string"),
        ({"Cmd": ["a\0b"]}, {}, "zero byte"),
        ({"Env": ["a\0b=1"]}, {}, "zero byte"),
        ({"WorkingDir": "a\0"}, {}, "zero byte"),
        ({}, {"workdir": "relative"}, "absolute path"),
        ({}, {"workdir": "/a/../b"}, "absolute path"),
    ],
)
def test_broken_values_are_named(config: dict[str, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(MicaError, match=says):
        plan(config, **options)


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/a:/b", Volume(Path("/a"), "/b", read_only=False)),
        ("/a/:/b//c/./d/:ro", Volume(Path("/a"), "/b/c/d", read_only=True)),
        ("/:/host:rw", Volume(Path("/"), "/host", read_only=False)),
    ],
)
def test_volumes(text: str, volume: Volume) -> None:
    assert parse_volume(text) == volume


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a",
        "name:/b",
        "./a:/b",
        "/a:b",
        "/a:/b/../c",
        "/a/../b:/c",
        "/a:/",
        "/a:/.",
        "/a:/b:z",
        "/a:/b:ro:x",
        ":/b",
    ],
)
def test_refused_volumes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_volume(text)


def test_env_arguments_and_files() -> None:
    items = parse_env_file("# comment\n\nA=1 # kept\r\n  B\nC=\nQ='q'\n")
    assert items == ("A=1 # kept", "B", "C=", "Q='q'")
    assert resolve_env((*items, "MISSING"), {"B": "host"}) == ("A=1 # kept", "B=host", "C=", "Q='q'")
    with pytest.raises(UsageError, match="no name"):
        resolve_env(["=x"], {})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".lock", "a" * 64, "a\n", "ä"])
def test_refused_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_names() -> None:
    assert check_name("a_1.x-" + "y" * 57)
    assert check_hostname("box.example.org")
    for name in ("", "-a", "a-", "a_b", "a" * 65, "a\n"):
        with pytest.raises(UsageError):
            check_hostname(name)
