"""What `mica cache …` finds and does, as values and as text."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mica.cache.cache import Cache
from mica.cache.eviction import Eviction, Taken
from mica.cache.inventory import Inventory, Item, Kind
from mica.cache.ledger import Limits
from mica.cache.proof import Verdict
from mica.cache.remover import Rehearsal
from mica.cache.shown import ShownNames
from mica.cli.bars import progress
from mica.cli.printing import print_facts, print_json, print_table
from mica.fetch.cachecheck import Finding, repair
from mica.files import mapped_os_errors
from mica.sizes import format_size

_SHOWN = 20
"""Findings that are shown as text; --json has all."""


@dataclass(frozen=True, slots=True)
class CacheReport:
    root: Path
    limits: Limits
    inventory: Inventory
    held_bytes: int

    def show(self, *, every: bool, as_json: bool) -> None:
        in_use = self._in_use()
        items = sorted(self.inventory.items, key=lambda item: (-item.used, item.name)) if every else []
        kinds = {kind: [item for item in self.inventory.items if item.kind is kind] for kind in Kind}
        taken = self.inventory.size + self.held_bytes
        if as_json:
            facts: dict[str, Any] = {
                "cache": str(self.root), "bytes": taken, "held_bytes": self.held_bytes,
                "quota_bytes": self.limits.most, "keep_free_bytes": self.limits.keep_free,
                "kinds": {kind.value: _summary(items, in_use) for kind, items in kinds.items()},
            }  # fmt: skip
            if every:
                facts["files"] = [_file_facts(item, in_use) for item in items]
            print_json(facts)
            return
        if every:
            print_table(("file", "size", "used", "in use"), [_file_row(item, in_use) for item in items])
        rows = [_summary_row(kind, _summary(items, in_use)) for kind, items in kinds.items()]
        print_table(("kind", "files", "size", "in use", "oldest", "newest"), rows)
        quota = f" of {format_size(self.limits.most)}" if self.limits.most else ", no quota"
        lines: dict[str, object] = {"cache": self.root, "size": f"{format_size(taken)}{quota}"}
        if self.limits.keep_free:
            lines["stays free"] = format_size(self.limits.keep_free)
        if self.held_bytes:
            lines["removed, but held"] = format_size(self.held_bytes)
        print_facts(lines)

    def _in_use(self) -> set[str]:
        found = set()
        with ShownNames(self.root) as shown, progress("Look", self.inventory.size) as done:
            hand = Rehearsal(self.root, shown)
            for item in self.inventory.items:
                if hand.take(item) is Taken.IN_USE:
                    found.add(item.name)
                done(item.size)
        return found


def _summary(items: Sequence[Item], in_use: set[str]) -> dict[str, Any]:
    used = [item.used for item in items]
    return {
        "files": len(items), "bytes": sum(item.size for item in items),
        "in_use": sum(item.name in in_use for item in items),
        "in_use_bytes": sum(item.size for item in items if item.name in in_use),
        "oldest": _moment(min(used)) if used else None, "newest": _moment(max(used)) if used else None,
    }  # fmt: skip


def _summary_row(kind: Kind, summary: dict[str, Any]) -> tuple[object, ...]:
    in_use = f"{summary['in_use']} ({format_size(summary['in_use_bytes'])})" if summary["in_use"] else "0"
    size = format_size(summary["bytes"])
    return kind.value, summary["files"], size, in_use, summary["oldest"] or "", summary["newest"] or ""


def _file_facts(item: Item, in_use: set[str]) -> dict[str, Any]:
    return {"name": item.name, "bytes": item.size, "used": _moment(item.used), "in_use": item.name in in_use}


def _file_row(item: Item, in_use: set[str]) -> tuple[str, str, str, str]:
    return item.name, format_size(item.size), _moment(item.used), "yes" if item.name in in_use else ""


def _moment(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


def show_eviction(outcome: Eviction, taken_bytes: int, *, dry_run: bool, as_json: bool) -> None:
    """Show what was removed, or would be."""
    if as_json:
        print_json({
            "dry_run": dry_run, "bytes": taken_bytes, "removed": [item.name for item in outcome.freed],
            "removed_bytes": outcome.freed_bytes, "in_use": [item.name for item in outcome.in_use],
            "held": [item.name for item in outcome.held], "spared": [item.name for item in outcome.spared],
        })  # fmt: skip
        return
    if dry_run and outcome.freed:
        rows = [(item.name, format_size(item.size), _moment(item.used)) for item in outcome.freed]
        print_table(("would be removed", "size", "used"), rows)
    told: dict[str, object] = {("would be removed" if dry_run else "removed"): _counted(outcome.freed)}
    for what, items in (
        ("in use, stay", outcome.in_use),
        ("used lately, stay", outcome.spared),
        ("removed, but held", outcome.held),
    ):
        if items:
            told[what] = _counted(items)
    print_facts({**told, "cache": format_size(taken_bytes)})


def _counted(items: Sequence[Item]) -> str:
    size = format_size(sum(item.size for item in items))
    return f"{len(items)} file{'' if len(items) == 1 else 's'}, {size}"


@dataclass
class Verification:
    """The findings of a check, by verdict."""

    right: int = 0
    unproven: list[Finding] = field(default_factory=list)
    wrong: list[Finding] = field(default_factory=list)
    repaired: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        if finding.verdict is Verdict.RIGHT:
            self.right += 1
        elif finding.verdict is Verdict.WRONG:
            self.wrong.append(finding)
        else:
            self.unproven.append(finding)

    def repair(self, store: Cache) -> None:
        with mapped_os_errors(f"repair the cache {store.root}"), store.quota.sweeper.alone():
            remover = store.quota.sweeper.remover()
            for finding in self.wrong:
                if repair(store.root, finding, remover) is not Taken.IN_USE:
                    self.repaired.append(finding)
            store.quota.sweeper.count()

    def show(self, *, as_json: bool) -> None:
        if as_json:
            print_json({
                "right": self.right, "unproven": [_finding_facts(finding) for finding in self.unproven],
                "wrong": [_finding_facts(finding) for finding in self.wrong],
                "repaired": [finding.item.name for finding in self.repaired],
            })  # fmt: skip
            return
        for findings in (self.wrong, self.unproven):
            for finding in findings[:_SHOWN]:
                sys.stdout.write(f"{finding.verdict}: {finding.item.name}: {finding.reason}\n")
            if len(findings) > _SHOWN:
                sys.stdout.write(f"and {len(findings) - _SHOWN} more (--json lists them)\n")
        print_facts({"right": self.right, "unproven": len(self.unproven), "wrong": len(self.wrong)})
        if self.repaired:
            print_facts({"repaired": len(self.repaired)})
        if self.unproven:
            sys.stdout.write("--fetch compares unproven files with those of the servers.\n")


def _finding_facts(finding: Finding) -> dict[str, Any]:
    return {"name": finding.item.name, "bytes": finding.item.size, "reason": finding.reason}
