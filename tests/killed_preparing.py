"""Prepares data again and again, killed one step further each time; run as a program of its own, because it forks.

    python killed_preparing.py DATA TOKENIZER FOLDER

FOLDER/before holds what an earlier run made; FOLDER/<n> what is there after a kill at the n-th rename, removal or
write to disk. Prints how many kills it took until a run came through.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tandem.training.data.prepare import prepare
from tandem.training.data.spec import PrepareSpec
from tandem.training.progress import Silence


def main(data: Path, tokenizer: Path, folder: Path) -> None:
    for number in itertools.count():
        shutil.copytree(folder / "before", folder / str(number))
        child = os.fork()
        if not child:
            prepare_until(number, PrepareSpec(input=data, tokenizer=tokenizer, prefix=folder / str(number) / "d"))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            print(number)
            return


def prepare_until(number: int, spec: PrepareSpec) -> None:
    points = itertools.count()

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if next(points) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return called

    Path.replace, Path.unlink = deadly(Path.replace), deadly(Path.unlink)
    os.fsync = deadly(os.fsync)
    prepare(spec, Silence())
    os._exit(0)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
