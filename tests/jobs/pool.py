"""Pools of ranks: one mpirun serves many `mpidl` commands of the tests.

Starting Python, MPI and the libraries on each rank costs more than most of the runs under test. A
pool is started for each number of ranks at its first command; each rank reads commands from a named
pipe, so that ranks without work sleep, and ends when the tests do. A command that fails on all
ranks together leaves them in order, and they take the next one; a rank that fails alone, aborts or
is killed ends the pool, just as it would have ended a job of its own: exit status and messages are
those of its mpirun. The next command gets a new pool. At the end all pools must finalize MPI, with
everything that their commands left behind.

As a program (python -m tests.jobs.pool FOLDER) it is one rank of a pool.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 100  # seconds for a command
TOGETHER = 20  # seconds for the other ranks, where one has ended with an error
LIFE = 3600  # and for a pool, should the tests themselves be killed


class Pool:
    """The ranks of one mpirun, and their commands."""

    def __init__(self, ranks: int, environment: dict[str, str]) -> None:
        self.ranks, self.environment = ranks, environment
        self._made = tempfile.TemporaryDirectory(prefix="mpidl-pool-")
        self.folder = Path(self._made.name)
        for rank in range(ranks):
            os.mkfifo(self.folder / f"rank{rank}")
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            limit, rank = (
                ("timeout", "--kill-after=10", str(LIFE)),
                ("python", "-m", __name__, str(self.folder)),
            )
            self._mpirun = subprocess.Popen(
                [*limit, "mpirun", "-n", str(ranks), *rank],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,
                cwd=ROOT,
            )
        self._pipes = [self._open(self.folder / f"rank{rank}") for rank in range(ranks)]
        self._count = 0

    def _open(self, path: Path) -> int:
        """The pipe to a rank, once the rank has come to read it."""
        deadline = time.monotonic() + LIMIT
        while self.alive and time.monotonic() < deadline:
            with suppress(OSError):
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.005)
        self.kill()
        raise AssertionError(
            f"{self.ranks} ranks did not start\n{(self.folder / 'err').read_text()}"
        )

    def run(self, args: tuple[str, ...]) -> tuple[int, str, str]:
        """Run `mpidl ARGS` on all ranks.

        Returns:
            Exit status, stdout and stderr.

        Raises:
            AssertionError: It hangs.
        """
        self._count += 1
        request = self.folder / f"{self._count}.json"
        request.write_text(json.dumps({"args": args, "cwd": str(Path.cwd())}))
        for pipe in self._pipes:
            os.write(pipe, f"{request}\n".encode())
        statuses = self._wait(request, args)
        out, err = self._text(request, "out"), self._text(request, "err")
        if len(statuses) == self.ranks:
            return max(statuses), out, err
        return (
            self._mpirun.wait(),
            out + (self.folder / "out").read_text(),
            err + (self.folder / "err").read_text(),
        )

    def _wait(self, request: Path, args: tuple[str, ...]) -> list[int]:
        """The exit statuses of the ranks; fewer where the pool has ended."""
        ends = [request.with_suffix(f".{rank}.done") for rank in range(self.ranks)]
        deadline = time.monotonic() + LIMIT
        while True:
            alive = self.alive  # before the look: what ranks have written at their end counts
            found = [int(end.read_text()) for end in ends if end.exists()]
            if len(found) == self.ranks or not alive:
                return found
            if any(found):
                deadline = min(deadline, time.monotonic() + TOGETHER)
            if time.monotonic() > deadline:
                self.kill()
                what = f"the command hung ({found} of {self.ranks} ranks have ended): {args}"
                raise AssertionError(f"{what}\n{self._text(request, 'err')}")
            time.sleep(0.005)

    def _text(self, request: Path, kind: str) -> str:
        paths = [request.with_suffix(f".{rank}.{kind}") for rank in range(self.ranks)]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    @property
    def alive(self) -> bool:
        """Whether the ranks still run."""
        return self._mpirun.poll() is None

    def close(self) -> None:
        """Let the ranks end; they must do so in order."""
        ended = not self.alive
        for pipe in self._pipes:
            os.close(pipe)
        if ended:
            return
        try:
            status = self._mpirun.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            status = -1
        assert status == 0, (
            f"{self.ranks} ranks did not end in order ({status})\n"
            f"{(self.folder / 'err').read_text()}"
        )

    def kill(self) -> None:
        """End mpirun and its ranks at once."""
        self._mpirun.terminate()
        try:
            self._mpirun.wait(20)
        except subprocess.TimeoutExpired:
            self._mpirun.kill()


class Pools:
    """A pool for each number of ranks, for one environment."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def run(
        self, ranks: int, args: tuple[str, ...], environment: dict[str, str]
    ) -> tuple[int, str, str] | None:
        """As Pool.run; None where this environment is not that of the pool."""
        pool = self._pools.get(ranks)
        if pool is None or not pool.alive:
            if pool is not None:
                pool.close()
            pool = self._pools[ranks] = Pool(ranks, environment)
        return pool.run(args) if pool.environment == environment else None

    def close(self) -> None:
        """End all pools; raises AssertionError if one does not end in order."""
        for ranks in list(self._pools):
            self._pools.pop(ranks).close()


# --- one rank ---


def redirect(number: int, path: Path) -> None:
    """From now on what is written to a file descriptor, also by libraries, goes to a file."""
    (sys.stdout if number == 1 else sys.stderr).flush()
    with path.open("wb") as file:
        os.dup2(file.fileno(), number)


def serve(folder: Path) -> None:
    """Run commands until there are no more."""
    from mpidl.cli.main import main
    from mpidl.comm import context, launcher

    rank = launcher.rank()
    for request in (Path(line.strip()) for line in (folder / f"rank{rank}").open()):
        wanted: dict[str, Any] = json.loads(request.read_text())
        os.chdir(wanted["cwd"])
        for number, kind in (1, "out"), (2, "err"):
            redirect(number, request.with_suffix(f".{rank}.{kind}"))
        status = run(main, wanted["args"])
        gc.collect()  # closes shared files that a run has left open: collective
        if (known := context.current()) is not None:
            known.barrier()  # nobody needs this rank's help any more: it may sleep
        sys.stdout.flush()
        sys.stderr.flush()
        end = request.with_suffix(f".{rank}.done")
        end.with_suffix(".writing").write_text(str(status))
        end.with_suffix(".writing").rename(end)
    os.chdir("/")


def run(main: Callable[[list[str]], int], args: list[str]) -> int:
    """The exit status of a command."""
    try:
        return main(args)
    except SystemExit as error:  # of the parser of the command line
        return error.code if isinstance(error.code, int) else int(error.code is not None)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
