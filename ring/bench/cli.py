"""`ring bench`: the experiments as commands."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

app = typer.Typer(no_args_is_help=True, help="Measure: rings on this machine, in what they compute and in what they cost.")
notes = Console(stderr=True, highlight=False)

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)
Numbers = Annotated[str, typer.Option(metavar="N,N")]


def say(line: str) -> None:
    """A line of progress, to standard error."""
    notes.print(line, soft_wrap=True)


@contextmanager
def sentences(models: bool = True) -> Iterator[None]:
    """An experiment that cannot be run is one sentence and exit code 1; Ctrl-C leaves nothing running. `models`: some
    are loaded."""
    from ring.answers import RingError

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if models:
        from weights_tools.skeleton import hush_transformers

        hush_transformers()
    try:
        yield
    except (RingError, ValueError) as error:
        if type(error).__module__ == "builtins":
            raise
        notes.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        notes.print("interrupted")
        raise typer.Exit(130) from None


def numbers(text: str) -> list[int]:
    """`1,2,4` as a list."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(f"'{text}' is not a list of numbers such as 1,2,4")
    return found


@app.command()
def compare(
    shape: Annotated[str, typer.Option(help="gpt2, llama-1b, gpt2-tiny (random weights), or a checkpoint's folder.")] = "gpt2",
    dtype: Annotated[
        str, typer.Option(help="One or more of float32, bfloat16, int8 (beside transformers in bfloat16).")
    ] = "float32",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the ring.")] = 2,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Sequences at once.")] = "1,8,16",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of every prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens of every sequence.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Measured pairs.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each node; transformers gets all of them.")] = 1,
    transformers: Annotated[bool, typer.Option(help="Compare with transformers.")] = True,
    llama_bench: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The folder of llama.cpp's programs, to compare with it too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """A ring against transformers' generate() on the same work, and llama.cpp where it is installed, in turns: decode
    rates and ratios with their spread."""
    import msgspec

    with sentences():
        from ring.bench.compare import compare as run
        from ring.bench.compare import line
        from ring.bench.nodes import environment

        for each in dtype.split(","):
            work = (shape, each, nodes, numbers(batch), prompt, new_tokens, repeats, threads)
            for result in run(*work, transformers, llama_bench, say):
                fields = asdict(result) | {"ratios": result.ratios, "environment": environment()}
                print(msgspec.json.encode(fields).decode() if as_json else line(result), flush=True)


@app.command()
def pipeline(
    stages: Annotated[str, typer.Option(metavar="N,N", help="Rings of so many stages.")] = "2,4,8",
    step_ms: Annotated[float, typer.Option(min=1, help="What a stage takes for a microbatch.")] = 20.0,
    delays: Annotated[str, typer.Option(metavar="MS,MS", help="What every link adds.")] = "0,1,5,20",
    new_tokens: Annotated[int, typer.Option(min=20, help="New tokens of every sequence.")] = 60,
    prompt: Annotated[int, typer.Option(min=64, help="Tokens of a long prompt; for time to first token.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The ring's own cost: stages that take a fixed time, everything else real. Efficiency 1 is the ideal."""
    import msgspec

    with sentences():
        from ring.bench.pipeline import long_prompts, speculation, throughput

        def show(fields: object, line: str) -> None:
            print(msgspec.json.encode(fields).decode() if as_json else line, flush=True)

        for count in numbers(stages):
            for delay in delays.split(","):
                t = throughput(count, step_ms, float(delay), new_tokens, say)
                show(
                    t,
                    f"{count} stages, {t.slept_ms:.2f} ms a step, {delay} ms a link, {t.sequences} sequences: "
                    f"{t.tokens_per_s:.1f} tok/s, efficiency {t.efficiency:.3f}; hop p50 {t.hop_us_p50:.0f} µs (a bare one "
                    f"{t.bare_hop_us_p50:.0f} µs); idle CPU {t.idle_cpu:.2%} of a core",
                )
            p = long_prompts(count, step_ms, prompt, say)
            show(
                p,
                f"{count} stages, a prompt of {prompt} tokens: first token after {p.ttft_s:.3f} s, ideal {p.ideal_s:.3f} s, "
                f"efficiency {p.efficiency:.3f}; a running stream's inter-token latency {p.itl_ms:.1f} ms alone, "
                f"p99 {p.p99_ms:.1f} ms under such prompts ({p.p99_ms / p.itl_ms:.2f}x)",
            )
        g = speculation(max(numbers(stages)), step_ms, say)
        show(
            g,
            f"{g.stages} stages, one stream, guessing ahead: {g.repetitive:.2f}x on text that repeats, "
            f"{g.unpredictable:.3f}x on text that never does",
        )


@app.command()
def quality(
    dtype: Annotated[str, typer.Option(metavar="DTYPE,DTYPE", help="Which to measure.")] = "float32,bfloat16,float16,int8",
    tokens: Annotated[int, typer.Option(min=256, help="Tokens of held-out text.")] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What a dtype costs in quality: the pocket model on text that it was not trained on."""
    import msgspec

    with sentences():
        from ring.bench.quality import WINDOW
        from ring.bench.quality import quality as run

        dtypes = dtype.split(",")
        with Progress(*COLUMNS, console=notes, transient=True, disable=not notes.is_terminal) as bar:
            task = bar.add_task("windows", total=len(dtypes) * (tokens // WINDOW))
            results = run(dtypes, tokens, lambda count: bar.advance(task, count))
        for q in results:
            line = (
                f"{q.dtype:8s} {q.bytes / 1e6:6.1f} MB, perplexity {q.perplexity:.4f}, divergence from float32 "
                f"{q.divergence:.2e} nats, same likeliest token {q.agreement:.2%} of {q.tokens}"
            )
            print(msgspec.json.encode(q).decode() if as_json else line, flush=True)


@app.command()
def study(
    out: Annotated[Path, typer.Option(help="The study's folder; one that was interrupted is gone on with.")] = Path("study"),
    shape: Annotated[str, typer.Option(help="gpt2, llama-1b, gpt2-tiny (random weights), or a checkpoint's folder.")] = "gpt2",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or int8.")] = "float32",
    nodes: Annotated[str, typer.Option(metavar="N,N")] = "1,2,3,4",
    prompt: Annotated[str, typer.Option(metavar="N,N", help="Tokens of every prompt.")] = "16,64,128,256,512,1024",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Sequences at once.")] = "1,4,8,16",
    slow: Annotated[str, typer.Option(metavar="N,N", help="Also with the last node so many times as slow.")] = "1,2,4,8",
    recovery: Annotated[bool, typer.Option(help="Also with the last node killed and started again.")] = True,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens of every sequence.")] = 50,
    warm_ups: Annotated[int, typer.Option(min=0)] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds of every cell.")] = 5,
) -> None:
    """Throughput and latency against nodes, prompt length and batch: raw results, CSV, a report and plots."""
    with sentences():
        from ring.bench.report import write_report
        from ring.bench.study import Plan, run_study

        grid = (numbers(nodes), numbers(prompt), numbers(batch))
        plan = Plan(shape, dtype, *grid, new_tokens, warm_ups, repeats, [*map(float, numbers(slow))], recovery)
        try:
            with Progress(*COLUMNS, console=notes, disable=not notes.is_terminal) as bar:
                task = bar.add_task("rounds", total=len(plan.cells()) * repeats)
                run_study(plan, out, lambda line: bar.console.print(line), lambda count: bar.advance(task, count))
        finally:
            for path in write_report(out):
                say(f"wrote {path}")


@app.command()
def simulate(
    stages: Annotated[str, typer.Option(metavar="N,N", help="Rings of so many stages.")] = "2,4,8,16,32,64,128",
    step_ms: Annotated[str, typer.Option(metavar="MS[,MS]", help="What a stage takes; several are one ring's stages.")] = "20",
    token_ms: Annotated[float, typer.Option(min=0, help="What a token takes, if all of a microbatch's are longer.")] = 0.6,
    model: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Instead: a model's stages, from its config.json.", show_default=False),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="With --model.", show_default="the config's")] = None,
    bandwidth: Annotated[str, typer.Option(help="With --model: how fast each machine reads memory.")] = "20GB/s",
    compute: Annotated[
        str | None, typer.Option(help="With --model: how fast each multiplies.", show_default="10 operations a byte")
    ] = None,
    network: Annotated[str, typer.Option(help="With --model: bandwidth of a link.")] = "1Gbit",
    latency: Annotated[str, typer.Option(help="Of a link, one way.")] = "0.3ms",
    streams: Annotated[
        str | None, typer.Option(metavar="N,N", help="Sequences at once.", show_default="one, and two a stage")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of every prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens of every sequence.")] = 64,
    every: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="A new sequence so often; 0: all at once.")] = 0.0,
    outage: Annotated[
        list[str] | None, typer.Option(metavar="STAGE:AT:SECONDS", help="A stage that is gone for a while; can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Rings in simulated time, of up to hundreds of machines: the real scheduler, without torch, sockets or waiting."""
    import msgspec

    with sentences(models=False):
        from ring.bench.simulate import fixed_stages, line, model_stages, parse_outage, run
        from ring.plan.machines import equal_machines
        from ring.plan.units import parse_time
        from weights_tools.facts import read_facts

        outages = [parse_outage(text) for text in outage or []]
        seconds = [parse_time(f"{part}ms") for part in step_ms.split(",")]
        sizes = numbers(stages) if len(seconds) == 1 else [len(seconds)]
        facts = read_facts(model, dtype) if model is not None else None
        machine = equal_machines(1, "1T", bandwidth, compute, latency, network)[0]
        for count in sizes:
            for many in numbers(streams) if streams else [1, 2 * count]:
                if facts is not None:
                    ring = model_stages(facts, machine, count)
                else:
                    ring = fixed_stages(seconds * (count if len(seconds) == 1 else 1), token_ms / 1e3, machine.latency)
                result = run(ring, many, prompt, new_tokens, every, outages)
                print(msgspec.json.encode(result).decode() if as_json else line(result), flush=True)


@app.command()
def plan(
    shape: Annotated[str, typer.Option(help="gpt2, llama-1b, gpt2-tiny (random weights), or a checkpoint's folder.")] = "gpt2",
    dtype: Annotated[str, typer.Option(help="One or more of float32, bfloat16.")] = "float32",
    nodes: Annotated[str, typer.Option(metavar="N,N", help="Real rings of so many nodes.")] = "1,2",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Sequences at once, in real rings.")] = "1,8",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of every prompt, in real rings.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=8, help="New tokens of every sequence.")] = 32,
    emulated: Annotated[bool, typer.Option(help="Rings of emulated stages.")] = True,
    real: Annotated[bool, typer.Option(help="Rings that compute, on this machine.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Check the planner: predict, run real rings on this machine, print the error."""
    from dataclasses import asdict

    import msgspec

    with sentences():
        from ring.bench.plan import EMULATED, GOOD, check_emulated, check_real, line

        errors = []
        sources = [check_emulated(EMULATED, new_tokens, say)] if emulated else []
        if real:
            load = (numbers(nodes), numbers(batch), prompt, new_tokens)
            sources += [check_real(shape, each, *load, say) for each in dtype.split(",")]
        for source in sources:
            for checked in source:
                errors.append(abs(checked.error))
                fields = asdict(checked) | {"error": checked.error}
                print(msgspec.json.encode(fields).decode() if as_json else line(checked), flush=True)
        good = sum(error <= GOOD for error in errors)
        say(f"{good} of {len(errors)} figures within {GOOD:.0%}")
