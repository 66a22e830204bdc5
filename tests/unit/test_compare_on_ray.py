"""The same runs on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from polyalign.evaluation.results import Run
from polyalign.training import train
from tests import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray, an extra, is not installed"),
]

ON_RAY = """
import os, sys
from ray.cluster_utils import Cluster
from polyalign import cli

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
sys.argv = ["polyalign", *sys.argv[1:]]
try:
    cli.main()
finally:
    cluster.shutdown()
"""


def test_two_workers_of_a_cluster_make_the_runs_that_one_process_makes(tmp_path):
    recipe = tiny.write(tmp_path / "tiny.toml", optim={"epochs": 1}, train={"evals": 1}, source={"root": "quarters"})
    (tmp_path / "quarters").symlink_to(tiny.data())  # a path relative to the working folder
    arguments = ["compare", "--recipe", str(recipe), "--lang", "en", "--strategies", "projection,lilt"]
    options = ["--on", "ray", "--set", "test.knowledge=false"]
    environment = {**os.environ, "POLYALIGN_CACHE": str(tmp_path / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_RAY), *arguments, *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "runs: 2 of 2" in done.stderr
    assert str(Path("eval/en.md")) in done.stdout
    for name in ("projection", "lilt"):
        made = Run.load_json(tmp_path / "eval" / "runs" / f"tiny-quarters-en-{name}-all-s0.json")
        assert made.threads == 1
        assert made.retries == 0
        one = tiny.resolved(name, optim={"epochs": 1}, train={"evals": 1})
        here = train.train(one, tmp_path / name, resume=False)
        assert here is not None
        assert made.test[0].hits().hits.tolist() == here.test[0].hits().hits.tolist()
        assert [look.loss for look in made.dev_evaluations] == pytest.approx(
            [look.loss for look in here.dev_evaluations]
        )
