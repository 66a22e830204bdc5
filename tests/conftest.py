"""What holds for every test: one thread, no network, no home folder, and real data only where it lies."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPO = Path(__file__).resolve().parents[1]

# A shell that runs the tests in the background may have Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Libraries read these when they are imported, so they are set before any of them is. Sockets are closed by
# pytest-socket (see pyproject.toml); a process that a test starts is held offline by the environment.
_HOME = tempfile.TemporaryDirectory(prefix="polyalign-tests-", ignore_cleanup_errors=True)
os.environ |= {
    "HOME": _HOME.name,
    "XDG_CACHE_HOME": f"{_HOME.name}/.cache",
    "HF_HOME": f"{_HOME.name}/.cache/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "COLUMNS": "120",
    "NO_COLOR": "1",
}
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# Messages below warnings are what the command line shows.
logging.getLogger("polyalign").setLevel(logging.INFO)

# A busy machine is no failure. In CI hypothesis takes such a profile of its own, which also repeats its examples.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "CI" not in os.environ:
    settings.load_profile("patient")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout's root."""
    return REPO


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, benchmarks and towers; a test that asks for it is skipped where there is none.

    It is ``$POLYALIGN_REAL_DATA``, else ``shared`` beside the checkout.
    """
    named = os.environ.get("POLYALIGN_REAL_DATA")
    folder = Path(named) if named else REPO.parent / "shared"
    if named and not folder.is_dir():
        pytest.fail(f"POLYALIGN_REAL_DATA names {folder}, which is not a folder")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder} (set POLYALIGN_REAL_DATA)")
    return folder


@pytest.fixture
def news() -> Iterator[list[tuple[object, ...]]]:
    """What is reported as progress while the test runs: task, done, total and, where there is one, the note."""
    from polyalign.utils.progress import shown_by

    told: list[tuple[object, ...]] = []
    with shown_by(lambda *one: told.append(one if one[-1] else one[:-1])):
        yield told
