"""The ``untaint`` command: runs ``cli``, and turns what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

__all__ = ["main"]

FINISHED, INTERNAL, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave: 0 finished, 1 internal error, 2 wrong use or input, 3 with --check if something was set aside."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream of somebody's own
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(_code(sys.argv[1:] if arguments is None else arguments))


def _code(arguments: list[str]) -> int:
    from untaint.cli import run_command
    from untaint.errors import UntaintError

    try:
        code = run_command(arguments)
        sys.stdout.flush()
    except UntaintError as error:
        return _told(str(error), WRONG_USE)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _told("interrupted. What was finished is kept: the same command goes on from there.", INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINISHED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _unexpected()
        where = f" ({error.filename})" if error.filename else ""
        return _told(f"the disk is full{where}. Free some space and give the same command again.", WRONG_USE)
    except Exception:
        return _unexpected()
    return code


def _told(message: str, code: int) -> int:
    from untaint.terminal import plain

    print(f"untaint: {plain(message)}", file=sys.stderr)
    return code


def _unexpected() -> int:
    traceback.print_exc()
    return _told("this is an error in untaint, not in what you did. Please report it with the lines above.", INTERNAL)


if __name__ == "__main__":
    main()
