"""`tandem compat`: the documents' scripts, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

app = cyclopts.App(name="compat", help="Write the documents' scripts, which call the same code.")


@app.command
def scripts(out: Path, /, *, force: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Write the documents' tree of tools; its scripts call the installed tandem.

    Args:
        out: Folder for the tree, created where missing; llm_tools/ and llm_train/ are put into it.
        force: Overwrite files of the same name that are different.
    """
    from tandem.compat.scripts import write_scripts

    for path in write_scripts(out, force=force):
        print(path)
