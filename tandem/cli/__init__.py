"""The front door: one file per command, imported only when it is called, and no logic here.

Next to nothing is imported with this file either, so that Ctrl-C is answered in one line from the first moment on.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found a problem, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

import tandem
from tandem.errors import TandemError, UsageError, printable

if TYPE_CHECKING:
    from types import FrameType

    import cyclopts

COMMANDS = {
    "quickstart": ("tandem.cli.quickstart:quickstart", "Train a small model on this machine and serve it apart."),
    "serve": ("tandem.cli.serve:serve", "Serve a model folder on this host: prefill, decode and gateway processes."),
    "role": (
        "tandem.cli.role:app",
        "The role that a rank table gives this process: what `serve --from-rank-table` means.",
    ),
    "instance": ("tandem.cli.instance:instance", "Run one inference instance in the foreground."),
    "vllm": ("tandem.cli.vllm:vllm", "Run one vLLM server in the foreground, set up to hand over keys and values."),
    "gateway": ("tandem.cli.gateway:gateway", "Run the gateway in front of running instances."),
    "gateway-key": ("tandem.cli.gateway_key:gateway_key", "Make an API key for the gateway."),
    "topology": ("tandem.cli.topology:app", "See and change which instances a running gateway has."),
    "chat": ("tandem.cli.chat:chat", "Talk to a running service."),
    "train": ("tandem.cli.train:app", "Train a model: pretrain, sft, lora."),
    "data": ("tandem.cli.data:app", "Prepare data to train on: texts and conversations to token files."),
    "lora": ("tandem.cli.lora:app", "Merge a LoRA adapter into its base model."),
    "model": ("tandem.cli.model:app", "List, show and fetch models, check a folder, make random ones."),
    "ranktable": ("tandem.cli.ranktable:app", "Generate, merge, check, show and convert rank tables."),
    "compat": ("tandem.cli.compat:app", "Write the documents' scripts, which call the same code."),
}
"""Command name -> (where it lives, its one-line help). The help stands here so that listing imports nothing."""


FROM_RANK_TABLE = "--from-rank-table"
"""`tandem serve` with it is `tandem role`: the flags are vLLM's then, and the model one of them."""


def build_app() -> cyclopts.App:
    """The command tree, with every command still unimported."""
    import cyclopts

    app = cyclopts.App(
        name="tandem",
        help=tandem.__doc__,
        version=tandem.__version__,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for name, (target, summary) in COMMANDS.items():
        app.command(target, name=name, help=summary)
    return app


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every error becomes one line on stderr."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _said("stopped", 130)


def _run(arguments: list[str]) -> int:
    import cyclopts

    try:
        result = build_app()(
            spelled_out(arguments), result_action="return_value", exit_on_error=False, print_error=False
        )
    except cyclopts.CycloptsError as error:
        return _said(
            f"{' '.join(str(error).split())} See `{' '.join(('tandem', *(error.command_chain or ())))} --help`.", 2
        )
    except TandemError as error:
        return _said(str(error), 2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:  # whoever read our output has enough, as in `| head`
        return 1
    except OSError as error:
        return _said(_what_failed(error), 1)
    return result if isinstance(result, int) else 0


def spelled_out(arguments: list[str]) -> list[str]:
    """The command line with `serve --from-rank-table` as the command that it means."""
    if arguments[:1] == ["serve"] and FROM_RANK_TABLE in arguments:
        return ["role", *(word for word in arguments[1:] if word != FROM_RANK_TABLE)]
    return arguments


def _what_failed(error: OSError) -> str:
    """A file or the network said no: which, and why."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}; free, repair or change what it names and try again"


def _said(text: str, code: int) -> int:
    lines = map(printable, f"tandem: {text}".split("\n"))  # what a message quotes of a file moves no cursor
    print(*lines, sep="\n", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the `tandem` command."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as in `nohup`
    try:
        if heeded:
            signal.signal(signal.SIGINT, press)
        _prepare()
        code = _written(run(sys.argv[1:]))
    except KeyboardInterrupt:
        code = _said("stopped", 130)
    except Exception:
        if not pressed:  # of which some libraries make an error of their own, as pydantic does
            raise
        code = _said("stopped", 130)
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left is Python's own end, which answers with tracebacks
    sys.exit(code)


def _written(code: int) -> int:
    """The code of a command, or 1 where what it printed cannot be written; who reads no further needs no message."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own end would try it again
        return code or (1 if isinstance(error, BrokenPipeError) else _said(f"stdout: {_what_failed(error)}", 1))
    return code


def _prepare() -> None:
    if sys.platform == "win32":
        sys.exit("tandem: Windows is not supported; use Linux, or WSL 2 on Windows")
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone is no reason to fail
    import faulthandler

    faulthandler.enable()  # what ends in native code says in whose
    # A plain kill leaves nothing half-written either; commands that serve or train bring handlers of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _open_closed() -> None:
    """A stream that was closed, as by `>&-`, leads nowhere: else the next file that is opened would be it."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
            os.set_inheritable(number, True)  # to the processes it starts
