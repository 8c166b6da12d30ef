"""llama.cpp on the same shape, as another thing that a ring is compared with: in one process, and over its own RPC.

Only speed is compared. The model file has the checkpoint's weights and no vocabulary; llama's are not reordered for
llama.cpp's way of rotating, so what it says is not what the checkpoint says.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ring.bench.shapes import BenchError
from ring.launch import free_ports
from weights_tools.checkpoint import Checkpoint
from weights_tools.tensorfile import read_tensor

PROGRAM = "llama-batched-bench"
SERVERS = ("ggml-rpc-server", "rpc-server")
TIMEOUT_S = 600


class LlamaCpp:
    """Runs `llama-batched-bench`.

    Args:
        path: the program, or the folder of llama.cpp's programs.
        source: a checkpoint of the gpt2 or llama architecture.
        dtype: float32, bfloat16 or int8 (its Q8_0).

    Raises:
        BenchError: no such program, or another architecture.
    """

    def __init__(self, path: Path, source: Path, dtype: str) -> None:
        self.program = path / PROGRAM if path.is_dir() else path
        if not self.program.is_file():
            raise BenchError(f"there is no {PROGRAM} at {path}; give --llama-bench the folder of llama.cpp's programs")
        self.server = next((found for name in SERVERS if (found := self.program.parent / name).is_file()), None)
        self.model = source / f"model-{dtype}.gguf"
        if not self.model.exists():
            write_gguf(source, dtype, self.model)

    def rate(self, batch: int, prompt: int, new_tokens: int, threads: int, servers: int = 0) -> float:
        """New tokens a second of decode; with `servers`, over so many RPC servers of one thread each."""
        command = [str(self.program), "-m", str(self.model), "-c", str(batch * (prompt + new_tokens)), "-b", "2048"]
        command += ["-npp", str(prompt), "-ntg", str(new_tokens), "-npl", str(batch), "--output-format", "jsonl"]
        command += ["-t", str(threads), "-tb", str(threads)]
        with ExitStack() as stack:
            if servers:
                assert self.server is not None
                ports = [stack.enter_context(serve(self.server)) for _ in range(servers)]
                command += ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports), "-ngl", "99"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                return float(json.loads(line)["speed_tg"])
        last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
        raise BenchError(f"{self.program.name} failed: {last}")


@contextmanager
def serve(program: Path) -> Iterator[int]:
    """An RPC server of one thread; its port."""
    (port,) = free_ports(1)
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{program.name} does not start") from None
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def write_gguf(source: Path, dtype: str, to: Path) -> None:
    """Write a checkpoint as llama.cpp reads it.

    Raises:
        BenchError: the `gguf` package is missing, or the architecture is neither gpt2 nor llama.
    """
    try:
        import gguf
    except ImportError:
        raise BenchError("comparing with llama.cpp needs one more package: pip install 'ring[bench]'") from None
    checkpoint = Checkpoint(source)
    config: Any = checkpoint.config
    if config.model_type not in ("gpt2", "llama"):
        raise BenchError(f"'{config.model_type}' cannot be written for llama.cpp here; choose a gpt2 or llama shape")
    arch = gguf.MODEL_ARCH.GPT2 if config.model_type == "gpt2" else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    kinds = {"float32": gguf.GGMLQuantizationType.F32, "bfloat16": gguf.GGMLQuantizationType.BF16}
    kind = kinds.get(dtype, gguf.GGMLQuantizationType.Q8_0)
    partial = to.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, config.model_type)
    describe(writer, config)
    for name, stored in checkpoint.tensors.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            continue
        tensor = read_tensor(stored).float()
        if config.model_type == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.t()
        values = np.ascontiguousarray(tensor.numpy())
        if values.ndim > 1 and "position" not in target:
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shutil.move(partial, to)


def describe(writer: Any, config: Any) -> None:
    """The part of a config that llama.cpp needs."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim or config.hidden_size // config.num_attention_heads)
