"""`ring plan` and `ring profile`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from ring.sentences import sentences
from weights_tools.cli import Dtype

STREAMS = 8


class AimOption(StrEnum):
    """What a plan is best at."""

    throughput = "throughput"
    latency = "latency"


def add_commands(app: typer.Typer) -> None:
    """Offer the commands on `app`."""

    @app.command()
    def plan(
        checkpoint: Annotated[
            str | None,
            typer.Argument(help="A checkpoint's folder, its config.json, or its name on the Hub.", show_default=False),
        ] = None,
        machines: Annotated[
            Path | None, typer.Option(metavar="FILE", help="The machines, as `ring profile` writes them.", show_default=False)
        ] = None,
        nodes: Annotated[
            int | None, typer.Option(min=1, max=1024, help="Or so many equal machines.", show_default=False)
        ] = None,
        memory: Annotated[str, typer.Option(metavar="SIZE", help="With --nodes: memory of each.")] = "16G",
        bandwidth: Annotated[str, typer.Option(help="With --nodes: how fast each reads memory.")] = "20GB/s",
        compute: Annotated[
            str | None, typer.Option(help="With --nodes: how fast each multiplies.", show_default="10 operations a byte")
        ] = None,
        latency: Annotated[str, typer.Option(help="With --nodes: of a link, one way.")] = "0.3ms",
        network: Annotated[str, typer.Option(help="With --nodes: bandwidth of a link.")] = "1Gbit",
        dtype: Annotated[Dtype | None, typer.Option(help="Serve weights as this.", show_default="the config's")] = None,
        aim: Annotated[
            AimOption, typer.Option(help="Most tokens a second, or the fastest single stream.")
        ] = AimOption.throughput,
        streams: Annotated[
            int | None,
            typer.Option(min=1, max=1024, help="Sequences at once.", show_default="8, or as many as a ring is seen with"),
        ] = None,
        prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 128,
        new_tokens: Annotated[int, typer.Option(min=1, help="New tokens of each.")] = 128,
        context: Annotated[
            int | None, typer.Option(min=1, help="KV cache of each, in tokens.", show_default="2048, or the model's")
        ] = None,
        any_order: Annotated[
            bool, typer.Option("--any-order", help="Put the machines into the best order, eight at most.")
        ] = False,
        out: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write the plan, for `ring split --plan`.", show_default=False)
        ] = None,
        ring_toml: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Write the ring.toml that runs it; see docs/deploy.md.", show_default=False),
        ] = None,
        from_head: Annotated[
            str | None,
            typer.Option(
                metavar="ADDR", help="Or the machines of a ring that runs, as its traces show them.", show_default=False
            ),
        ] = None,
        watch: Annotated[float, typer.Option(min=0.5, metavar="SECONDS", help="With --from-head: how long.")] = 5.0,
        load: Annotated[
            int | None, typer.Option(min=1, help="With --from-head: ask so many prompts now.", show_default="only watch")
        ] = None,
        keys: Annotated[
            Path | None, typer.Option(help="With --from-head: a client's keys.", envvar="RING_KEYS", show_default=False)
        ] = None,
        insecure: Annotated[bool, typer.Option("--insecure", help="With --from-head: without keys.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    ) -> None:
        """Know before you start: which layers go to which machine, whether they fit, and how fast the ring will be.

        Reads the model's config.json only, no weights. See docs/plan.md for machines.toml and the formulas.
        """
        with sentences():
            from ring.plan import commands
            from ring.plan.cost import Load
            from ring.plan.machines import equal_machines, read_machines
            from ring.plan.planner import Planner
            from ring.plan.report import make_plan
            from ring.plan.show import show_plan
            from weights_tools.facts import read_facts
            from weights_tools.ringfile import to_toml

            proposal = None
            if sum(given is not None for given in (machines, nodes, from_head)) != 1:
                raise typer.BadParameter("give --machines FILE, or --nodes N with --memory SIZE, or --from-head ADDR")
            if from_head is not None:
                import asyncio

                from ring.plan import observe

                if checkpoint is None and (out or ring_toml):
                    raise typer.BadParameter("to write a plan, give the checkpoint too")
                status, laps = asyncio.run(observe.watch(from_head, keys, insecure, watch, load, prompt, new_tokens))
                facts = observe.facts_of_ring(status) if checkpoint is None else read_facts(checkpoint, status.dtype)
                check_layers(facts.layers, status.stages[0].info.layers, facts.name, status.model)
                seen = observe.Observed.of(laps, len(status.stages))
                ring, assumed = observe.machines_of_ring(status, facts, seen), ""
                streams = streams or load or observe.observed_streams(seen)
            elif checkpoint is None:
                raise typer.BadParameter("give a checkpoint's folder, its config.json, or its name on the Hub")
            else:
                facts = read_facts(checkpoint, dtype)
                if machines is not None:
                    ring, assumed = read_machines(machines), ""
                else:
                    ring = equal_machines(nodes or 1, memory, bandwidth, compute, latency, network)
                    assumed = (
                        f"assumed of every machine: {bandwidth} of memory bandwidth, links of {network} and {latency}; "
                        "`ring profile` measures them"
                    )
            asked = Load(streams or STREAMS, prompt, new_tokens, context or max(prompt + new_tokens, min(2048, facts.context)))
            check_context(asked.context, prompt + new_tokens, facts.context)
            planner = Planner(facts, ring, asked, aim.value, any_order)
            planned = make_plan(planner)
            if from_head is not None:
                proposal = observe.propose(status, planner)
            if ring_toml is not None and checkpoint is not None:
                file = commands.ring_file(planned, ring, checkpoint)
                write(ring_toml, commands.HEADER + to_toml(file), replace=False)
                lines = commands.chain(file, ring_toml)
                beside = f"each line on its machine, in a folder with {ring_toml.name}, its shards/stage-K and keys/NAME"
            else:
                lines = commands.without_file(planned, ring, checkpoint or "CHECKPOINT", out)
                beside = "each line on its machine, in a folder with its stage-K; or have all of it in one file, by --ring-toml"
            planned = msgspec.structs.replace(planned, commands=lines)
            raw = msgspec.json.format(msgspec.json.encode(planned), indent=1).decode()
            if out is not None:
                write(out, raw + "\n")
            if as_json and proposal is not None:
                print(msgspec.json.format(msgspec.json.encode({"proposal": proposal, "plan": planned}), indent=1).decode())
            elif as_json:
                print(raw)
            else:
                console = Console(highlight=False)
                console.print(show_plan(planned, assumed, beside, console.width), soft_wrap=True)
                if proposal is not None:
                    console.print(f"\n[bold]{proposal.says}[/bold]", soft_wrap=True)

    @app.command()
    def profile(
        name: Annotated[str | None, typer.Option(help="What to call this machine.", show_default="its host name")] = None,
        out: Annotated[Path, typer.Option(metavar="FILE", help="Written, or brought up to date.")] = Path("machines.toml"),
        threads: Annotated[
            int | None, typer.Option(min=1, help="CPU threads of the node.", show_default="all cores, shared out")
        ] = None,
        nodes: Annotated[int, typer.Option(min=1, max=64, help="How many nodes will share this machine.")] = 1,
        dtype: Annotated[list[Dtype] | None, typer.Option(help="Only these; can be repeated.", show_default="all")] = None,
        to: Annotated[
            str | None, typer.Option(metavar="ADDR", help="Also measure the link to the next machine, which runs --listen.")
        ] = None,
        listen: Annotated[
            str | None, typer.Option(metavar="ADDR", help="Measure nothing, but answer the machine before this one.")
        ] = None,
        keys: Annotated[
            Path | None, typer.Option(help="This machine's folder of keys.", envvar="RING_KEYS", show_default=False)
        ] = None,
        insecure: Annotated[
            bool, typer.Option("--insecure", help="Measure a link without keys, on a network you trust.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
    ) -> None:
        """Measure this machine for `ring plan`: memory, matrices at decode and prefill sizes, what a layer costs, its link.

        Takes less than a minute, and is best run while nothing else does. For a link, run `ring profile --listen
        tcp://0.0.0.0:5700` on the next machine first.
        """
        with sentences():
            from ring.plan.measure import run_listen, run_profile

            try:
                if listen is not None:
                    run_listen(listen, keys, insecure)
                else:
                    dtypes = [each.value for each in dtype] if dtype else None
                    run_profile(name, out, threads, nodes, dtypes, to, keys, insecure, as_json)
            except KeyboardInterrupt:
                raise typer.Exit(0 if listen else 130) from None


class PlanError(ValueError):
    """A plan that cannot be made; the message is one sentence."""


def check_layers(planned: int, running: int, name: str, model: str) -> None:
    """Raises PlanError unless the checkpoint has as many layers as the ring's model."""
    if planned != running:
        raise PlanError(f"{name} has {planned} layers, and the ring runs {model} with {running}; give that checkpoint")


def check_context(context: int, least: int, most: int) -> None:
    """Raises PlanError unless a stream's KV cache holds its tokens, and the model can use it."""
    if context < least:
        raise PlanError(f"a context of {context:,} does not hold a prompt and its answer, {least:,} tokens; raise --context")
    if context > most:
        raise PlanError(
            f"the model's context is {most:,} tokens, not {context:,}; lower --context, or --prompt and --new-tokens"
        )


def write(path: Path, text: str, replace: bool = True) -> None:
    """Write a file, all or nothing.

    Raises:
        PlanError: it cannot be written, or is there with other contents and not to be replaced.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        if not replace and path.exists() and path.read_text() != text:
            raise PlanError(f"{path} is there already and differs; remove it, or write to another file")
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise PlanError(f"{path} cannot be written ({error.strerror})") from None
