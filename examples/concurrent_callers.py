"""Share one scanner between asyncio tasks and threads: python examples/concurrent_callers.py PICTURE..."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from imgsafety import Scanner

paths = sys.argv[1:]
scanner = Scanner(max_wait=0.005)  # seconds that a picture may wait to be judged together with others


async def judge_all() -> None:
    """Every task awaits its own picture; the scanner makes batches of them."""
    results = await asyncio.gather(*(scanner.acheck(path) for path in paths))
    for result in results:
        print("task", result.path, result.verdict)


asyncio.run(judge_all())
with ThreadPoolExecutor() as threads:
    for result in threads.map(lambda path: scanner.submit(path).result(), paths):
        print("thread", result.path, result.verdict)
scanner.close()
