"""What the process that nodes are forked from imports and compiles: all that a node needs, so that none has to."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import ring.cli
import ring.gateway.serve
import ring.start  # noqa: F401
from ring.stage.compiler import can_compile
from ring.stage.gemm import product

if can_compile(torch.device("cpu")):
    product(torch.float32, torch.float32)
    product(torch.bfloat16, torch.bfloat16)
