"""Studies of Optuna: where they are kept, and what they were begun with."""

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

__all__ = ["as_json", "create_tables", "open_study", "settled", "storage_of"]


def storage_of(given: str | None, log_folder: str, study_name: str) -> str:
    """Where a named study is kept: ``--storage``, or a journal, safe for several processes.

    A journal's path is absolute: by its relative one Optuna cannot tell a lock that a killed process has left.
    """
    if given and not given.endswith(".log"):
        return given
    journal = Path(given or Path(log_folder) / f"{study_name}.log").absolute()
    if os.name == "nt" and not given:  # the journal's lock is a symbolic link, for administrators alone there
        return f"sqlite:///{journal.with_suffix('.db')}"
    return str(journal)


def _file_of(storage: str) -> Path | None:
    """That a journal or an SQLite database is; ``None`` of a database elsewhere."""
    is_file = storage.endswith(".log") or storage.startswith("sqlite:///")
    return Path(storage.removeprefix("sqlite:///").partition("?")[0]) if is_file else None


def open_study(storage: str, study_name: str) -> optuna.Study:
    """:raises ValueError: if there is no such study"""
    missing = ValueError(f"there is no study {study_name!r} in {storage}")
    file = _file_of(storage)
    if file and not file.is_file():
        raise missing  # opening it would make it
    backend: Any = JournalStorage(JournalFileBackend(storage)) if storage.endswith(".log") else storage
    try:
        return optuna.load_study(study_name=study_name, storage=backend)
    except KeyError:
        raise missing from None


def create_tables(url: str) -> None:
    """Of a database: where several workers open a new one at once all create its tables, and all but one fail."""
    file = _file_of(url)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(5):
        with contextlib.suppress(DatabaseError):
            optuna.storages.RDBStorage(url)
            return
        time.sleep(1.0)


def settled(study: optuna.Study, but: int | None = None) -> dict[str, Any]:
    """What a study was begun with; nothing yet while all its trials, ``but`` one, failed, as a typo makes them."""
    failed = all(trial.state == TrialState.FAIL for trial in study.get_trials(deepcopy=False) if trial.number != but)
    setting: dict[str, Any] = {} if failed else study.user_attrs.get("setting", {})
    return setting


def as_json(value: Any) -> Any:
    """As a study keeps it; of an object its text, less an address, which is another one in every process."""
    return json.loads(json.dumps(value, default=lambda other: re.sub(" at 0x[0-9a-f]+", "", str(other))))
