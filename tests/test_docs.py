"""Documents keep up with the program, and say nothing of the machine they were written on."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mica.config import load_config
from mica.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def tracked_files() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name.decode() for name in names.split(b"\0") if name and (ROOT / name.decode()).is_file()]


def registry_hosts() -> set[str]:
    """Hosts of package registries that this machine is set up with."""
    texts = [
        path.read_text("utf-8", "replace")
        for path in Path("/etc/apt").rglob("*")
        if path.suffix in {".list", ".sources"}
    ]
    for path in (Path("/etc/pip.conf"), *Path("/etc/xdg").glob("pip/pip.conf")):
        if path.is_file():
            parser = configparser.ConfigParser()
            parser.read(path)
            texts += [value for section in parser.sections() for value in parser[section].values()]
    return {host for text in texts for host in re.findall(r"https?://([^/\s]+\.[a-z]+)", text)}


def test_changes_can_be_put_together() -> None:
    """Each file of changes/ has a kind that is known, and its text comes out."""
    fragments = [path for path in (ROOT / "changes").iterdir() if path.name != "README.md"]
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "0.0.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for path in fragments:
        assert " ".join(path.read_text().split()) in shown, path.name


def test_manual_pages_are_as_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/man/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_of_the_configuration_has_every_key_and_an_example_that_is_right(tmp_path: Path) -> None:
    """The keys come from what refuses unknown ones."""
    page = (ROOT / "docs/man/mica-config.5.md").read_text()
    example = tmp_path / "config.toml"
    example.write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert load_config(example).portal is not None
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    documented = {text.partition("\n")[0]: set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) for text in sections}
    known = {}
    for section in documented:
        example.write_text(f"{section.replace('NAME', 'a.example.org')}\nno_such_key = 1")
        with pytest.raises(UserError, match="known are") as caught:
            load_config(example)
        known[section] = set(str(caught.value).rstrip(".").partition("known are ")[2].split(", "))
    known["[portal]"].remove("upstreams")  # a section of its own
    assert documented == known
    example.write_text("[no_such_section]")
    with pytest.raises(UserError) as caught:
        load_config(example)
    tops = str(caught.value).rstrip(".").partition("known are ")[2].split(", ")
    assert sorted(tops) == sorted({re.match(r"\[(\w+)", section)[1] for section in documented})  # type: ignore[index]


def test_every_command_has_an_example_and_its_exit_codes() -> None:
    pages = sorted((ROOT / "docs" / "man").glob("*.1.md"))
    assert len(pages) >= 14
    for page in pages:
        text = page.read_text()
        example = text.partition("## Example\n")[2].strip().splitlines()[0]
        assert example.startswith(page.name.removesuffix(".1.md").split("-")[0] + " "), page.name
        assert "| 4 | temporary" in text, page.name


def test_no_file_names_a_package_registry_or_this_checkout() -> None:
    words = {*registry_hosts(), f"{ROOT.parent}/"}
    pattern = re.compile("|".join(re.escape(word) for word in words if len(word) > 4))
    for path in tracked_files():
        found = pattern.search(path.read_text("utf-8", "replace"))
        assert found is None, f"{path.relative_to(ROOT)} names {found[0] if found else ''}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in tracked_files():
        if page.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
