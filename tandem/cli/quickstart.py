"""`tandem quickstart`: train a small model on this machine, serve it apart, ask it something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tandem.cli.serve import greet, say, tell

if TYPE_CHECKING:
    from tandem.deploy.demonstration import Report
    from tandem.topology.topology import Topology

HOST = "127.0.0.1"


def quickstart(
    *,
    once: Annotated[bool, Parameter(negative="")] = False,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("runs/quickstart"),
    port: int = 9000,
) -> None:
    """Train a small model on this machine's own Python library, then serve it with prefill and decode apart.

    Args:
        once: Stop after asking the running service two questions, instead of serving on until Ctrl-C.
        fresh: Train anew; otherwise what an earlier run left is used again.
        out: Folder of the run: data, checkpoints, models, pictures, topology, logs.
        port: Port of the gateway; another free one is taken, and named, where this one is in use.
    """
    import time

    from tandem.deploy.port import port_is_free
    from tandem.deploy.service import local_topology, running
    from tandem.topology.file import write_topology

    began = time.monotonic()
    model = train(out, fresh=fresh)
    if not port_is_free(HOST, port):
        say(f"port {port} is in use, so the gateway gets another one")
        port = 0
    topology = local_topology(model, port=port, host=HOST, served_model_name="quickstart")
    write_topology(topology, out / "topology.yaml")
    say(f"\nstarting {', '.join(one.name for one in topology.instances)}; logs in {out / 'logs'}")
    try:
        with running(topology, out / "logs", on_progress=tell) as deployment:
            demonstrate_all(topology)
            say(f"\nfrom nothing to here: {time.monotonic() - began:.0f} s")
            if not once:
                greet(topology)
                deployment.watch()
    except KeyboardInterrupt:
        say("stopped")


def train(out: Path, *, fresh: bool) -> Path:
    """Train what is not trained yet, with a bar; returns the model folder and says where the pictures lie."""
    from rich.console import Console

    from tandem.cli.training_bar import show_training
    from tandem.training.pipeline import prepare_and_train
    from tandem.training.recipe import read_recipe

    with show_training(Console()) as progress:
        model = prepare_and_train(read_recipe("quickstart"), out, progress, fresh=fresh)
    say(f"model: {model}")
    for picture in sorted(out.glob("*/*.png")):
        say(f"loss picture: {picture}")
    return model


def demonstrate_all(topology: Topology) -> None:
    """One completion and one chat question, answers streamed to the terminal."""
    import asyncio

    from tandem.deploy.demonstration import Question, demonstrate

    questions = (
        Question(text="def read_file(path):\n", is_chat=False, max_tokens=100),
        Question(text="What does shutil.copyfile do?", is_chat=True, max_tokens=80),
    )
    for question in questions:
        say(f"\n--- {'chat' if question.is_chat else 'completion'}: {question.text.strip()}")
        report = asyncio.run(demonstrate(topology, question, lambda text: print(text, end="", flush=True)))
        say(f"\n--- {describe(report)}")


def describe(report: Report) -> str:
    """What happened where, in two lines."""
    return (
        f"{report.prefill} computed {report.prompt_tokens} prompt tokens and handed over {report.kv_bytes:,} bytes of "
        f"keys and values;\n    {report.decode} computed {report.decode_prompt_tokens} of them again and wrote "
        f"{report.completion_tokens} tokens. First token {1000 * report.first_token_s:.1f} ms, "
        f"then one every {1000 * report.between_tokens_s:.2f} ms"
    )
