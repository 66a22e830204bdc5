"""``python -m benchmarks.serving RUN``: text queries a second of `polyalign serve`, on an index of random vectors."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np

from polyalign.evaluation.model import load
from polyalign.serving import index_build
from polyalign.serving.index_store import Entry, Store

_QUERY = "mbwa wawili weusi na nyumba kubwa kwenye nyasi"


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--photos", type=int, default=100_000, help="in the index (default: 100000)")
    parser.add_argument("--requests", type=int, default=1000, help="each of another query (default: 1000)")
    parser.add_argument("--clients", type=int, default=8, help="that ask at once (default: 8)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_index(options.run, options.photos, Path(folder) / "index")
        with served(Path(folder) / "index") as (address, pid), ThreadPoolExecutor(options.clients) as pool:
            shares = [range(first, options.requests, options.clients) for first in range(options.clients)]
            begun, before = time.perf_counter(), cpu_seconds(pid)
            seconds = np.concatenate(list(pool.map(lambda share: ask(address, share), shares)))
            rate = len(seconds) / (time.perf_counter() - begun)
            cpu = (cpu_seconds(pid) - before) / len(seconds)
    half, most = 1000 * np.quantile(seconds, [0.5, 0.95])
    print(f"{options.photos:,} photos, {len(seconds):,} distinct queries, {options.clients} clients: ", end="")
    print(f"{rate:.0f} requests a second, median {half:.0f} ms, 95 % below {most:.0f} ms; ", end="")
    print(f"the server takes {1000 * cpu:.1f} ms of a processor a request; load {os.getloadavg()[0]:.1f}")


def make_index(run: str, photos: int, folder: Path) -> None:
    """Make an index of random vectors, of photos that do not exist."""
    rng = np.random.default_rng(0)
    model = index_build.place(run)
    vectors = rng.standard_normal((photos, len(load(run).encode_text(["."])[0]))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts = {"model": model, "identity": index_build.identity(model), "root": str(folder.parent), "captions": ""}
    store = Store.create(folder, {**facts, "dim": str(vectors.shape[1]), "columns": '["caption"]'})
    entries = [
        Entry(0, b"%d.jpg" % i, 0, 0, -1 - i, metadata=json.dumps({"caption": f"{_QUERY} {i}"})) for i in range(photos)
    ]
    store.append(vectors, [b"%d" % i for i in range(photos)], entries)


@contextmanager
def served(index: Path) -> Iterator[tuple[str, int]]:
    """Run ``polyalign serve``, and give its address and process id."""
    command = [sys.executable, "-m", "polyalign", "serve", str(index), "--port", "0", "--offline"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[0], process.pid
        finally:
            process.send_signal(signal.SIGINT)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken, on Linux."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def ask(address: str, numbers: range) -> list[float]:
    """Ask for the first page of each query, one after another; return the seconds that each took."""
    client = http.client.HTTPConnection(urlsplit(address).netloc)
    taken = []
    for number in numbers:
        begun = time.perf_counter()
        client.request("GET", f"/?q={quote(f'{_QUERY} {number}')}")
        answer = client.getresponse()
        content = answer.read()
        taken.append(time.perf_counter() - begun)
        assert answer.status == 200
        assert content.count(b"<li>") == 24
    return taken


if __name__ == "__main__":
    main()
