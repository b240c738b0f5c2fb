"""Decodes many pictures at once into one file, on every core that this process may use."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from untaint.sources import decode
from untaint.sources.base import Item
from untaint.sources.worker import Job, perform

__all__ = ["cores", "decode_into"]

ALONE = 256  # pictures; below this, starting other processes costs more than it saves
_START = "import sys; sys.path[:] = {path!r}; from untaint.sources.worker import serve; serve()"


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


class _Stopped(Exception):  # noqa: N818 - no error
    """The work is being given up."""


class _Worker:
    """One decoding process; started again when a picture kills it."""

    def __init__(self) -> None:
        self._over = False
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Begin to start the process; ``ready`` waits for it."""
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ready(self) -> bool:
        """Return whether the process came up."""
        try:
            return self._process is not None and self._answer(self._process) == "ready"
        except (EOFError, pickle.UnpicklingError):
            return False

    @staticmethod
    def _answer(process: subprocess.Popen[bytes]) -> object:
        assert process.stdout is not None
        return pickle.load(process.stdout)

    def ask(self, job: Job) -> dict[int, str]:
        """Have one job done; raises EOFError when the process died of it, OSError when it could not write."""
        process = self._process
        if self._over or process is None or process.stdin is None:
            raise _Stopped
        try:
            pickle.dump(job, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer = self._answer(process)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            if self._over:
                raise _Stopped from error
            self.close()
            self.launch()
            if not self.ready():
                raise _Stopped from error
            raise EOFError from error
        if isinstance(answer, OSError):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def close(self, *, over: bool = False) -> None:
        """End the process, for good if ``over``."""
        self._over = self._over or over
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def _survive(worker: _Worker, job: Job) -> dict[int, str]:
    """Do a job; when the decoder dies of it, find the picture that kills it and set that aside."""
    try:
        return worker.ask(job)
    except EOFError:
        if len(job.items) == 1:
            return {0: "the decoder crashed on it"}
    reasons: dict[int, str] = {}
    picture_bytes = 3 * job.size * job.size
    for place, item in enumerate(job.items):
        single = replace(job, items=[item], offset=job.offset + place * picture_bytes)
        if reason := _survive(worker, single).get(0):
            reasons[place] = reason
    return reasons


def decode_into(
    path: str,
    offset: int,
    batches: Iterator[list[Item]],
    total: int,
    size: int,
    advance: Callable[[int], None],
    processes: int | None = None,
) -> dict[int, str]:
    """Write the pixels of all pictures into a file from a byte on; return index -> reason of the unreadable ones."""
    count = cores() if processes is None else processes
    jobs = _jobs(path, offset, batches, size)
    if total <= ALONE or count == 0:
        return _alone(jobs, advance)
    workers = [_Worker() for _ in range(max(1, min(count, total // 64)))]
    try:
        for worker in workers:
            worker.launch()
        if not all(worker.ready() for worker in workers):  # an interpreter inside another program
            return _alone(jobs, advance)
        return _together(jobs, workers, advance)
    finally:
        for worker in workers:
            worker.close(over=True)


def _jobs(path: str, offset: int, batches: Iterator[list[Item]], size: int) -> Iterator[tuple[int, Job]]:
    first = 0
    for items in batches:
        yield first, Job(items, size, path, offset + first * 3 * size * size)
        first += len(items)


def _alone(jobs: Iterator[tuple[int, Job]], advance: Callable[[int], None]) -> dict[int, str]:
    unreadable: dict[int, str] = {}
    for first, job in jobs:
        with decode.quiet():
            unreadable.update((first + place, reason) for place, reason in perform(job).items())
        advance(len(job.items))
    return unreadable


def _together(
    jobs: Iterator[tuple[int, Job]], workers: list[_Worker], advance: Callable[[int], None]
) -> dict[int, str]:
    answers: queue.SimpleQueue[tuple[int, int, dict[int, str]] | BaseException | None] = queue.SimpleQueue()
    turn = threading.Lock()
    stop = threading.Event()

    def drive(worker: _Worker) -> None:
        try:
            while not stop.is_set():
                with turn:
                    first, job = next(jobs, (0, None))
                if job is None:
                    break
                answers.put((first, len(job.items), _survive(worker, job)))
        except BaseException as error:  # raised again where it is seen
            answers.put(error)
        finally:
            answers.put(None)

    threads = [threading.Thread(target=drive, args=(worker,), daemon=True) for worker in workers]
    unreadable: dict[int, str] = {}
    try:
        for thread in threads:
            thread.start()
        running = len(workers)
        while running:
            answer = answers.get()
            if answer is None:
                running -= 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                first, pictures, reasons = answer
                unreadable.update((first + place, reason) for place, reason in reasons.items())
                advance(pictures)
    finally:
        stop.set()
    return dict(sorted(unreadable.items()))
