"""The `ring` command: the only file that knows every other. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ring.bench.cli import app as bench
from ring.deploy.cli import app as deploy
from ring.keyring_cli import app as keys
from ring.plan.cli import add_commands as add_plan_commands
from ring.sentences import errors, fail, sentences
from ring.verify_cli import verify
from weights_tools.cli import add_commands
from weights_tools.fetch_cli import add_fetch
from weights_tools.ringfile import parse_size, read_ring_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Run one language model on several plain machines, each holding some of its layers.

    Cut a checkpoint with [bold]ring split[/bold], start [bold]ring node[/bold] on every machine, ask with
    [bold]ring ask[/bold]; or try it all on this machine with [bold]ring up[/bold].""",
)
DEFAULT_HEAD = "tcp://127.0.0.1:5555"
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", help="This machine's folder of keys, see `ring keys`.", envvar="RING_KEYS", show_default=False),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Talk to other machines without keys, on a network that you trust.")
]
HeadOption = Annotated[str, typer.Option("--head", metavar="ADDR", help="Where the head serves clients.", envvar="RING_HEAD")]


def prove(config: PreTrainedConfig) -> None:
    """The proof that a split runs first; it uses the ring's own stages, which `weights_tools` does not know."""
    from ring.stage.proof import prove as prove_cut

    prove_cut(config)


add_commands(app, prove)
add_fetch(app, prove)
app.command()(verify)
add_plan_commands(app)
app.add_typer(keys, name="keys")
app.add_typer(bench, name="bench")
app.add_typer(deploy, name="deploy")


def parse_bytes(text: str) -> int:
    """A size such as `4G`, `512M` or a number of bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


KvMemory = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes, metavar="SIZE", help="Memory for the KV cache, such as 4G [default: half of what is free]."
    ),
]


@app.command()
def node(
    shard: Annotated[Path | None, typer.Argument(help="A stage's folder, as `ring split` made it.", show_default=False)] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Where the node before this one sends, such as tcp://0.0.0.0:5600."),
    ] = None,
    next: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Where the next node listens; the last one's next is stage 0.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Take all this from a ring.toml, with --name; see docs/deploy.md.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Which of the ring.toml's machines this is.", show_default=False)] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Where others reach this node, as a spare must say if it listens at 0.0.0.0."),
    ] = None,
    clients: Annotated[str, typer.Option(metavar="ADDR", help="Stage 0 only: where clients are served.")] = DEFAULT_HEAD,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
    kv_memory: KvMemory = None,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    verify: Annotated[bool, typer.Option(help="Check every tensor's checksum while loading.")] = True,
    token_budget: Annotated[
        int,
        typer.Option(min=32, max=65536, help="Stage 0 only: most tokens of prompts in a microbatch; longer ones go in chunks."),
    ] = 128,
    max_running: Annotated[int, typer.Option(min=1, max=1024, help="Stage 0 only: most sequences at once.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Stage 0 only: most requests waiting before 'busy'.")] = 256,
    recovery_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Stage 0 only: how long streams wait for a lost stage to return.")
    ] = 60.0,
    spare: Annotated[
        bool, typer.Option("--spare", help="Wait beside the stage of this shard, and take its place when it is lost.")
    ] = False,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    watchdog: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Give up when one microbatch takes longer, to be started again.")
    ] = 60.0,
    speculate: Annotated[
        bool, typer.Option(help="Stage 0 only: guess ahead from what was said before, where the ring has room.")
    ] = True,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop when the process that started this one is gone.")
    ] = False,
) -> None:
    """Run one stage on this machine. Start the nodes of a ring in any order.

    SIGTERM lets stage 0 finish its streams first; a later stage stops at once, and the ring turns to its spare or waits.
    """
    if config is None and (shard is None or listen is None or next is None):
        raise typer.BadParameter("give a shard, --listen and --next; or --config and --name")
    if config is not None and (name is None or listen or next):
        raise typer.BadParameter("with --config, give --name, and neither --listen nor --next")
    with sentences():
        from ring.head.requests import Limits
        from ring.start import NodeOptions, run_node

        limits = Limits(token_budget, max_running, max_waiting, recovery_timeout, speculate)
        options = NodeOptions(
            shard=shard or Path(),
            listen=listen or "",
            next=next or "",
            advertise=advertise,
            clients=clients,
            threads=threads,
            kv_memory=kv_memory,
            device=device,
            verify=verify,
            with_parent=with_parent,
            spare=spare,
            keys=keys,
            insecure=insecure,
            watchdog=watchdog,
            limits=limits,
        )
        if config is not None:
            from ring.config import configure

            options = configure(options, read_ring_file(config), name or "")
        run_node(options, lambda line: print(line, flush=True))


@app.command()
def up(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A checkpoint's folder or its name on the Hugging Face Hub.", show_default="the pocket model"),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes to cut it over.")] = 3,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or int8.", show_default="as it is")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each node.", show_default="an even share")] = None,
    kv_memory: KvMemory = None,
    clients: Annotated[str, typer.Option(metavar="ADDR", help="Where the head serves clients.")] = DEFAULT_HEAD,
    headless: Annotated[bool, typer.Option("--headless", help="Only run the ring, until Ctrl-C.")] = False,
    question: Annotated[str | None, typer.Option("--ask", metavar="PROMPT", help="Answer this prompt and stop.")] = None,
    http: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="PORT", help="Serve HTTP too, at this port of loopback; see `ring serve`."),
    ] = None,
) -> None:
    """Run a whole ring on this machine: split if needed, one process a node, and the dashboard.

    Without a terminal, prompts are read from standard input, one a line.
    """
    with sentences():
        from ring.up import run_up

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            run_up(checkpoint, nodes, dtype, threads, kv_memory, clients, headless, question, prove, http)
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(0 if headless else 130) from None


@app.command()
def tui(
    head: HeadOption = DEFAULT_HEAD,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all that the dashboard is told to this file, as JSON lines.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show a recording instead of a ring.", show_default=False)
    ] = None,
    speed: Annotated[float, typer.Option(min=0, max=1000, help="How fast to replay; \\[ and ] change it.")] = 1.0,
) -> None:
    """Open the dashboard: ask, and see live where the time of every token goes. F1 in it explains all keys and figures."""
    if record and replay:
        raise typer.BadParameter("give --record or --replay, not both")
    # In a browser, textual-serve stands in for the terminal.
    if not (sys.stdin.isatty() and sys.stdout.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
        fail("the dashboard needs a terminal; without one, use `ring status` and `ring ask`")
    with sentences():
        from tui.app import run

        run(head, record, replay, speed, keys, insecure)


@app.command()
def ask(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT…", help="One or more prompts.", show_default=False)
    ] = None,
    token_ids: Annotated[
        list[str] | None,
        typer.Option("--token-ids", metavar="1,2,3", help="A prompt as token ids; can be repeated."),
    ] = None,
    head: HeadOption = DEFAULT_HEAD,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; more makes it bolder.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest that reach this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among this many likeliest tokens; 0 among all.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same tokens.", show_default=False)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string; can be repeated.", show_default=False)] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end-of-sequence token.")] = False,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each prompt.")] = False,
) -> None:
    """Ask a running ring; tokens are printed as they come. Several prompts run at the same time."""
    asked: list[str | list[int]] = [*(prompts or []), *(parse_token_ids(ids) for ids in token_ids or [])]
    if not asked:
        raise typer.BadParameter("give a prompt, or --token-ids")
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or [],
        "ignore_eos": ignore_eos,
    }
    with sentences():
        import asyncio

        from ring.ask import ask as ask_ring
        from ring.client import RingClient

        client = RingClient(head, keys=keys, insecure=insecure)
        if not asyncio.run(ask_ring(client, asked, options, as_json, sys.stdout, errors)):
            raise typer.Exit(1)


def parse_token_ids(text: str) -> list[int]:
    """Numbers with commas between them."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise typer.BadParameter(f"'{text}' is not a list of token ids such as 1,2,3")
    return ids


@app.command()
def serve(
    head: HeadOption = DEFAULT_HEAD,
    host: Annotated[str, typer.Option(help="The address to serve at; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may use it: one key a line.", show_default=False)
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Serve other machines without any key. Only on a network you trust.")
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin call it; can be repeated.", show_default="none"),
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Most generations at once; more are told 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens that a request may ask for.")] = 4096,
    max_body: Annotated[
        int | None, typer.Option(parser=parse_bytes, metavar="SIZE", help="Largest request body.", show_default="4M")
    ] = None,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    time_limit: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest that a request may take.")] = 600.0,
    drain: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long answers may finish after Ctrl-C.")] = 10.0,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop when the process that started this one is gone.")
    ] = False,
) -> None:
    """Serve a ring over HTTP: OpenAI's API at /v1, a plain /generate, /health and /metrics. See /docs once it runs."""
    with sentences():
        from ring.gateway.app import Limits
        from ring.gateway.auth import read_keys
        from ring.gateway.serve import ServeOptions, run_serve

        limits = Limits(max_body or 4 << 20, max_tokens, max_requests, time_limit)
        api_keys = read_keys(api_key_file) if api_key_file else []
        origins = cors or []
        run_serve(ServeOptions(head, host, port, api_keys, allow_anyone, origins, limits, drain, with_parent, keys, insecure))


@app.command()
def status(
    head: HeadOption = DEFAULT_HEAD,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Show a ring's stages, and what it is doing."""
    with sentences():
        import asyncio

        import msgspec

        from ring.client import RingClient
        from ring.status import status_table
        from ring.wire.clients import Status

        async def get() -> Status:
            async with RingClient(head, keys=keys, insecure=insecure) as ring:
                return await ring.status()

        answer = asyncio.run(get())
        if as_json:
            print(msgspec.json.encode(answer).decode())
        else:
            Console(highlight=False).print(status_table(answer))
        if answer.state != "ready":
            raise typer.Exit(3)


@app.command()
def drain(
    head: HeadOption = DEFAULT_HEAD,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take requests again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the last stream has finished.")] = False,
) -> None:
    """Have a ring take no new requests and finish those it has, before machines are stopped or changed."""
    with sentences():
        import asyncio

        from ring.client import RingClient

        async def run() -> None:
            async with RingClient(head, keys=keys, insecure=insecure) as ring:
                status = await ring.drain(not resume)
                while wait and not resume and status.running + status.waiting:
                    await asyncio.sleep(0.2)
                    status = await ring.status()
                left = status.running + status.waiting
                typer.echo("the ring takes requests again" if resume else f"the ring is draining, {left} streams to finish")

        asyncio.run(run())


@app.command()
def doctor(
    shard: Annotated[Path | None, typer.Argument(help="A stage's folder, to check it too.", show_default=False)] = None,
    listen: Annotated[str | None, typer.Option(metavar="ADDR", help="What the node here listens at.")] = None,
    next: Annotated[str | None, typer.Option(metavar="ADDR", help="Where the next node listens.")] = None,
    head: HeadOption = DEFAULT_HEAD,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array of findings.")] = False,
) -> None:
    """Check keys, ports, versions, clocks, models and memory, here and on every stage, and say what to fix.

    Run it on each machine with what its `ring node` is given.
    """
    with sentences():
        import asyncio

        from ring.doctor import examine, print_findings

        findings = asyncio.run(examine(shard, listen, next, head, keys, insecure))
        if not print_findings(findings, as_json):
            raise typer.Exit(1)


if __name__ == "__main__":
    app()
