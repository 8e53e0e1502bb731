"""`make bench [ONLY=glob]`: measures, writes build/bench/results.json, prints a table (docs/benchmarks.md)."""

import argparse

from benchmarks import (  # noqa: F401 - they register their rows
    check,
    coldstart,
    collect,
    convert,
    dataplane,
    docker,
    ingest,
    metaimage,
    mount,
    node,
    replicate,
    status,
    storage,
    workers,
)
from benchmarks.harness import keep, run_rows, show


def main() -> None:
    """Run the chosen rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="glob over names of rows")
    show(keep(run_rows(parser.parse_args().only)))


if __name__ == "__main__":
    main()
