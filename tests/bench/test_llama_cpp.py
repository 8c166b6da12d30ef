"""llama.cpp is handed the checkpoint's weights, and its figures are read off what it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

from ring.bench.llama_cpp import PROGRAM, LlamaCpp, write_gguf
from ring.bench.shapes import BenchError
from tests.models import make_checkpoint


def install(folder: Path, script: str) -> Path:
    """A stand-in for llama.cpp's program."""
    folder.mkdir()
    program = folder / PROGRAM
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}")
    program.chmod(0o755)
    return folder


def test_the_figure_is_read(tmp_path: Path) -> None:
    script = """
batch = int(sys.argv[sys.argv.index("-npl") + 1])
print("some chatter")
print('{"pp": 16, "speed_tg": %d.5}' % batch)
"""
    llama = LlamaCpp(install(tmp_path / "bin", script), make_checkpoint(tmp_path / "gpt2", "gpt2"), "float32")
    assert llama.rate(8, prompt=16, new_tokens=4, threads=2) == 8.5
    assert llama.server is None


def test_failures_are_sentences(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "gpt2", "gpt2")
    with pytest.raises(BenchError, match="give --llama-bench the folder"):
        LlamaCpp(tmp_path, source, "float32")
    broken = install(tmp_path / "bin", "sys.exit('error: no such model')")
    with pytest.raises(BenchError, match="no such model"):
        LlamaCpp(broken, source, "float32").rate(1, 16, 4, 1)
    with pytest.raises(BenchError, match="choose a gpt2 or llama shape"):
        LlamaCpp(broken, make_checkpoint(tmp_path / "qwen2", "qwen2"), "float32")


@pytest.mark.parametrize(("name", "tensor", "turned"), [("gpt2", "attn_qkv", True), ("llama", "attn_q", False)])
def test_the_model_file(tmp_path: Path, name: str, tensor: str, turned: bool) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", name)
    write_gguf(source, "float32", tmp_path / "model.gguf")
    written = {t.name: np.asarray(t.data) for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    stored = load_file(source / "model.safetensors")
    assert len(written) == len(stored)
    ours = "transformer.h.2.attn.c_attn.weight" if turned else "model.layers.2.self_attn.q_proj.weight"
    expected = stored[ours].t() if turned else stored[ours]
    assert np.array_equal(written[f"blk.2.{tensor}.weight"], expected.numpy())
    assert {"token_embd.weight", "output_norm.weight", "blk.4.ffn_up.weight"} <= set(written)
