"""Documents keep up with the program, and say nothing of the machine they were written on."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

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


def test_manual_pages_are_as_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/man/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
