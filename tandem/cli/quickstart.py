"""`tandem quickstart`: train a small model on this machine, serve it apart, ask it something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tandem.cli.serve import greet, say, tell

if TYPE_CHECKING:
    from tandem.deploy.demonstration import Report
    from tandem.topology.topology import Topology
    from tandem.training.settings.config import Recipe

Device = Literal["auto", "cpu", "cuda", "npu"]
HOST = "127.0.0.1"


def quickstart(
    *,
    once: Annotated[bool, Parameter(negative="")] = False,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("runs/quickstart"),
    port: int = 9000,
    ranks: int | None = None,
    device: Device = "cpu",
) -> int:
    """Train a small model on this machine's own Python library, then serve it with prefill and decode apart.

    Args:
        once: Stop after asking the running service two questions, instead of serving on until Ctrl-C.
        fresh: Throw away what an earlier run left and train anew; otherwise that is used again.
        out: Folder of the run: data, checkpoints, models, pictures, topology, logs.
        port: Port of the gateway; another free one is taken, and named, where this one is in use.
        ranks: Processes that train; one for each device by default, on CPUs one.
        device: What to train on and to serve from; auto takes the best there is.
    """
    from tandem.deploy.port import port_is_free, require_port_number
    from tandem.deploy.service import local_topology, new_run_directory, running
    from tandem.topology.file import write_topology
    from tandem.topology.topology import Role

    require_port_number(port)
    recipe = recipe_on(ranks, out)
    say(f"working in {out.resolve()}")
    model = train(recipe, out, fresh=fresh, device=device)
    wanted, port = port, port if port_is_free(HOST, port) else 0
    # Both instances share the device, so neither takes what is left of its memory.
    arguments = {"device": device, "kv-cache-gib": "1"}
    topology = local_topology(model, port=port, host=HOST, served_model_name="quickstart", arguments=arguments)
    if wanted and not port:
        say(f"port {wanted} is in use, so the gateway takes {topology.of(Role.GATEWAY)[0].port}")
    folder = new_run_directory(out, "serve")
    write_topology(topology, folder / "topology.yaml")
    say(f"\nstarting {', '.join(one.name for one in topology.instances)}; logs in {folder / 'logs'}")
    shown = False
    try:
        with running(topology, folder / "logs", on_progress=tell) as deployment:
            demonstrate_all(topology)
            shown = True
            if not once:
                greet(topology, "def main(")
                deployment.watch()
    except KeyboardInterrupt:
        say("stopped")
    return 0 if shown else 130


def recipe_on(ranks: int | None, out: Path) -> Recipe:
    """The built-in recipe, with so many processes."""
    from tandem.training.settings.choice import choose
    from tandem.training.settings.config import Recipe
    from tandem.training.settings.values import Value

    options = {} if ranks is None else {"launch.ranks": Value(ranks, "--ranks")}
    recipe = choose("quickstart", "sft", environment={}, options=options, root=out)
    assert isinstance(recipe, Recipe), "it makes a new model"
    return recipe


def train(recipe: Recipe, out: Path, *, fresh: bool, device: Device) -> Path:
    """Train what is not trained yet, with a bar; returns the model folder and says where the pictures lie."""
    from rich.console import Console

    from tandem.catalogue.arithmetic import kv_bytes_per_token, parameters
    from tandem.cli.training_bar import show_training
    from tandem.model.families import read_config
    from tandem.training.pipeline import prepare_and_train

    with show_training(Console()) as progress:
        model = prepare_and_train(recipe, out, progress, fresh=fresh, device=device)
    config = read_config(model)
    say(f"model: {model} ({parameters(config):,} parameters, {kv_bytes_per_token(config, 4):,} KV bytes per token)")
    for picture in sorted(out.glob("*/*.png")):
        say(f"loss picture: {picture}")
    return model


def demonstrate_all(topology: Topology) -> None:
    """One completion and one chat question, answers streamed to the terminal."""
    import asyncio

    from tandem.deploy.demonstration import Question, demonstrate

    questions = (
        Question(text="def read_file(path):\n", is_chat=False, max_tokens=100, seed=1),
        Question(text="What does shutil.copyfile do?", is_chat=True, max_tokens=80, seed=2),
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
