"""The machine, and measuring in a process of its own so that one measurement does not stand in another's memory."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]


def facts() -> dict[str, Any]:
    """Say what it was measured on."""
    import torch

    from polyalign.utils.versions import versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(_meminfo("MemTotal") / 2**30, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Give the bytes that could be allocated now."""
    return _meminfo("MemAvailable")


def held_memory() -> int:
    """Give the bytes this process holds in memory now."""
    return _kib(Path("/proc/self/status"), "VmRSS")


def peak_memory() -> int:
    """Give the most bytes this process has held, on the GPU where there is one."""
    import torch

    from polyalign.utils import process

    return process.peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def forget_peak() -> None:
    """Let the peak of this process begin again from what it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def measure(module: str, task: dict[str, Any], env: dict[str, str] | None = None) -> Any:
    """Run ``python -m module`` with the task as JSON, offline and on all cores, and read the JSON it prints last."""
    threads = str(cores())
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", **(env or {})}
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(task)],
        cwd=REPO,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{module} {task} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.processor()


def _meminfo(key: str) -> int:
    return _kib(Path("/proc/meminfo"), key)


def _kib(path: Path, key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no {key} in {path}")
    return int(found[1]) * 1024
