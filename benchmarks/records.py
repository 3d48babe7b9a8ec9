"""Rows that the benchmarks write, and what they say of where they were measured."""

import csv
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """Columns that all rows of a run share.

    :param packages: whose versions to name; a column's underscore is a distribution's hyphen
    """
    return {
        "run": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "machine": f"{platform.machine()} {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        **{package: version(package.replace("_", "-")) for package in packages},
    }


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to the CSV, with its header if it is new. A missing column is left empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerows(rows)
