"""A process that decodes pictures for another one, over its standard input and output.

Not ``multiprocessing``: that would import the user's script again (or fork a process in which torch
has threads). What is unpickled here was pickled by the parent process, never read from data.
"""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import dataclass

import numpy as np

from untaint.sources import decode
from untaint.sources.base import Item

__all__ = ["Job", "serve"]


@dataclass(frozen=True)
class Job:
    """Some pictures, and the place in a file where their pixels belong."""

    items: list[Item]
    size: int
    path: str
    offset: int  # bytes


def perform(job: Job) -> dict[int, str]:
    """Decode a job's pictures and write their pixels; return the reasons of those that could not be."""
    images, reasons = decode.decode_batch(job.items, job.size)
    place = os.open(job.path, os.O_WRONLY)
    try:
        rest = memoryview(np.ascontiguousarray(images).tobytes())
        offset = job.offset
        while len(rest):
            count = os.pwrite(place, rest, offset)
            rest, offset = rest[count:], offset + count
    finally:
        os.close(place)
    return reasons


def serve() -> None:
    """Answer jobs until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it ends
    decode.silence()
    with open(0, "rb", closefd=False) as jobs, open(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # nothing else may write between the answers
        pickle.dump("ready", answers)
        answers.flush()
        while True:
            try:
                job = pickle.load(jobs)
            except EOFError:
                return
            try:
                answer: dict[int, str] | OSError = perform(job)
            except OSError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()
