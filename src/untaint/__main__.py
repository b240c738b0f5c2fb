"""The ``untaint`` command: runs ``cli``, and turns what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

FINISHED, INTERNAL, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave: 0 finished, 1 internal error, 2 wrong use or input, 3 with --check if something was set aside."""
    # threads that wait should sleep: spinning ones starve each other as soon as another process is busy
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from untaint.cli import run_command
    from untaint.errors import UntaintError

    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except UntaintError as error:
        print(f"untaint: {error}", file=sys.stderr)
        code = WRONG_USE
    except KeyboardInterrupt:
        print(
            "\nuntaint: interrupted. What was finished is kept: the same command goes on from there.", file=sys.stderr
        )
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        code = FINISHED
    sys.exit(code)


if __name__ == "__main__":
    main()
