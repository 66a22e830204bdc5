from __future__ import annotations

import re
import subprocess
import sys


def test_retrieval_is_measured_both_ways_with_one_result(repo):
    command = [sys.executable, str(repo / "benchmarks" / "retrieval.py"), "--captions", "60", "--images", "20"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(in blocks|at once): +[0-9.]+ s +-?[0-9,]+ MiB  (R@1 .*)", done.stdout)
    assert [way for way, _ in found] == ["in blocks", "at once"]
    assert found[0][1] == found[1][1]
