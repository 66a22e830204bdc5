"""Work of the search page in threads: queries in batches, and a bound on what waits."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from starlette.exceptions import HTTPException

from polyalign.serving.page_limits import Workers
from polyalign.serving.page_queries import Queries
from tests.shelf import encode


def rounded(vectors, skips):
    """Stand for an index: give the first number of each vector, and the skip."""
    return [[(round(float(vector[0]), 6), skip)] for vector, skip in zip(vectors, skips, strict=True)]


def test_queries_that_arrive_together_are_one_batch() -> None:
    batches: list[list[str]] = []
    searches: list[int] = []
    first, go = threading.Event(), threading.Event()

    def wait(batch):
        batches.append(batch)
        first.set()
        assert go.wait(10)
        return encode(batch)

    def search(vectors, skips):
        searches.append(len(skips))
        return rounded(vectors, skips)

    queries = Queries(wait, search)
    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(queries.hits, "a")]
        assert first.wait(10)
        found += [pool.submit(queries.hits, text, skip) for skip, text in enumerate("bcdb")]
        while len(queries._waiting) < 4 or pool._work_queue.qsize():
            time.sleep(0.001)
        go.set()
        answers = [future.result(10) for future in found]
    assert [sorted(batch) for batch in batches] == [["a"], ["b", "c", "d"]]
    assert searches == [1, 4]
    assert answers == rounded(encode(list("abcdb")), [0, 0, 1, 2, 3])


def test_a_query_that_failed_is_tried_again_and_old_ones_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr("polyalign.serving.page_queries._KEPT", 2)
    asked: list[str] = []

    def fail_first(batch):
        asked.extend(batch)
        if len(asked) == 1:
            raise RuntimeError("once")
        return encode(batch)

    queries = Queries(fail_first, rounded)
    with pytest.raises(RuntimeError, match="once"):
        queries.hits("a")
    for text in "aabbca":
        queries.hits(text)
    assert "".join(asked) == "aabca"


def test_all_of_a_batch_learn_that_searching_failed() -> None:
    first, go = threading.Event(), threading.Event()

    def fail(vectors, skips):
        first.set()
        assert go.wait(10)
        raise RuntimeError("the disk is gone")

    queries = Queries(encode, fail)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(queries.hits, "a")]
        assert first.wait(10)
        found += [pool.submit(queries.hits, text) for text in "bc"]
        while len(queries._waiting) < 2:
            time.sleep(0.001)
        go.set()
        for future in found:
            with pytest.raises(RuntimeError, match="the disk is gone"):
                future.result(10)


def test_work_beyond_what_may_wait_is_refused_and_later_accepted() -> None:
    async def check() -> None:
        workers, go = Workers(threads=1, waiting=2), threading.Event()
        begun = [asyncio.ensure_future(workers.run(go.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as refused:
            await workers.run(go.wait, 10)
        assert refused.value.status_code == 503
        assert refused.value.headers == {"Retry-After": "2"}
        go.set()
        assert await asyncio.gather(*begun) == [True] * 3
        assert await workers.run(len, "four") == 4

    asyncio.run(check())
