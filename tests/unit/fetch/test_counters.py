"""Counting from many threads."""

from concurrent.futures import ThreadPoolExecutor

from mica.fetch.counters import Traffic, TrafficCounter


def test_nothing_is_lost_between_threads() -> None:
    counter = TrafficCounter()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(800):
            pool.submit(counter.add, requests=1, transferred_bytes=10)
    assert counter.read() == Traffic(requests=800, transferred_bytes=8000)
