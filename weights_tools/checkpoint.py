"""The checkpoint: a Hugging Face model folder, here or on the Hub; its config, and where each tensor lies."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from weights_tools.folder import CheckpointError as CheckpointError  # this module speaks of nothing else
from weights_tools.folder import model_name, read_json, summarize
from weights_tools.tensorfile import StoredTensor, read_header

Tensors = dict[str, StoredTensor]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
UNWANTED = ["*/*", "consolidated*", "*.bin.index.json"]
COMPUTES_IN = ("float32", "bfloat16", "float16")
SERVED_AS = (*COMPUTES_IN, "int8")
SAMPLE = 64
SAMPLES = 2048
AT_ONCE = 16


def resolve(name: str, revision: str = "main") -> Path:
    """The local folder of a checkpoint: `name` itself if it is one, else downloaded from the Hugging Face Hub.

    Raises:
        CheckpointError: neither a folder nor a repository that can be downloaded.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json and the safetensors files")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise CheckpointError(f"there is no folder {name}; give a checkpoint's folder or its name on the Hugging Face Hub")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except errors.GatedRepoError:
        reason = "and the Hugging Face Hub gives it only to accounts that accepted its terms; accept them, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "and the Hugging Face Hub has no such model (or a private one); check the name, or log in with `hf auth login`"
    except Exception as error:  # the Hub's client and its transport fail in many ways; all mean the same here
        reason = (
            f"and the Hugging Face Hub cannot be reached ({summarize(error)}); "
            "download it on a machine with internet, or give a folder"
        )
    raise CheckpointError(f"'{name}' is no local folder, {reason}")


class Checkpoint:
    """A checkpoint's config and tensors. Opening it reads headers only, and finds missing and truncated files.

    `folder` is where it lies, `name` what people call it, `config` the model's, `tensors` its tensors by name, `dtype`
    the name of the dtype that most of its bytes have.

    Args:
        folder: where config.json and the tokenizer lie, and the tensors too unless they are given.
        tensors: the tensors, if they lie elsewhere.
        where: what to call it in errors; the folder, if not given.

    Raises:
        CheckpointError: no checkpoint, an incomplete one, or one in a form that cannot be served.
    """

    def __init__(self, folder: Path, tensors: Tensors | None = None, where: str | None = None) -> None:
        self.folder = folder
        self.where = where or str(folder)
        self.name = model_name(folder) if where is None else where.rpartition("/")[2]
        self.raw_config = read_json(folder / "config.json")
        if "quantization_config" in self.raw_config:
            raise CheckpointError(f"{self.where} is quantized, which a ring cannot serve; use the unquantized checkpoint")
        self.config = load_config(folder, self.where)
        self.tensors = find_tensors(folder) if tensors is None else tensors
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if getattr(torch, tensor.dtype).is_floating_point:
                sizes[tensor.dtype] += tensor.bytes
        if not sizes:
            raise CheckpointError(f"{self.where} holds no weights")
        self.dtype = sizes.most_common(1)[0][0]


def choose_dtype(checkpoint: Checkpoint, dtype: str | None) -> str:
    """The dtype that shards are written in: the one asked for, else the checkpoint's own.

    Raises:
        CheckpointError: one that a ring does not compute in.
    """
    if dtype is not None and dtype not in SERVED_AS:
        raise CheckpointError(f"'{dtype}' is no dtype to serve in; choose float32, bfloat16, float16 or int8")
    if dtype is None and checkpoint.dtype not in COMPUTES_IN:
        raise CheckpointError(
            f"{checkpoint.where} is stored as {checkpoint.dtype}; choose what to serve it in with --dtype, such as bfloat16"
        )
    return dtype or checkpoint.dtype


def fingerprint(checkpoint: Checkpoint, dtype: str | None = None) -> str:
    """A name for the weights as served in `dtype` (default: the checkpoint's own): 32 hex digits.

    It is a sha256 over the config, the dtype, every tensor's name, dtype and shape, and 64 bytes from the middle of its
    data (of more than 2048 tensors, of every second, third, …). So it is known in milliseconds, before anything is split,
    whatever the size; two finetunes of one base differ, as training moves every matrix; how the checkpoint is divided
    into files does not matter; and whoever can fetch a few bytes of a remote file can compute it without the rest.

    Raises:
        CheckpointError: a file that cannot be read, or a dtype that cannot be served.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(checkpoint.raw_config, sort_keys=True).encode())
    digest.update(choose_dtype(checkpoint, dtype).encode())
    names = sorted(checkpoint.tensors)
    sampled = names[:: math.ceil(len(names) / SAMPLES)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        samples = dict(zip(sampled, pool.map(sample, [checkpoint.tensors[name] for name in sampled]), strict=True))
    for name in names:
        tensor = checkpoint.tensors[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        digest.update(samples.get(name, b""))
    return digest.hexdigest()[:32]


def sample(tensor: StoredTensor) -> bytes:
    """A few bytes from a tensor's middle."""
    middle = bytearray(min(SAMPLE, tensor.bytes))
    with tensor.file.stream(tensor.offset + (tensor.bytes - len(middle)) // 2, len(middle)) as fill:
        fill(memoryview(middle))
    return bytes(middle)


def load_config(folder: Path, where: str | None = None) -> PreTrainedConfig:
    """The model's config, without ever running code that comes with it.

    Raises:
        CheckpointError: transformers does not know the architecture, or finds the config wrong.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a config may be wrong in any way; the user needs the sentence
        raise CheckpointError(
            f"{where or folder}/config.json is no config that transformers knows: {summarize(error)}"
        ) from None
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise CheckpointError(f"{where or folder}/config.json does not say how many layers the model has (num_hidden_layers)")
    return config


def find_tensors(folder: Path) -> Tensors:
    """Every tensor of a checkpoint, from its one file or from all that its index names.

    Raises:
        CheckpointError: no safetensors, a file that is missing, truncated or damaged, a tensor that is missing or twice.
    """
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).exists():
        raise CheckpointError(explain_absence(folder))
    weight_map = read_weight_map(folder / INDEX)
    files = sorted(set(weight_map.values()))
    for file in files:
        if not (folder / file).exists():
            raise CheckpointError(f"{folder} lacks {file}, which its index names; download it again")
    return join(weight_map, [read_header(folder / file) for file in files], str(folder))


def read_weight_map(path: Path) -> dict[str, str]:
    """Which file each tensor is in, as an index says.

    Raises:
        CheckpointError: no such file, or no index.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(is_plain_name(file) for file in weight_map.values()):
        raise CheckpointError(f"{path} does not say which file each tensor is in; download it again")
    return weight_map


def join(weight_map: dict[str, str], files: list[Tensors], where: str) -> Tensors:
    """The tensors of all files as one.

    Raises:
        CheckpointError: a tensor twice, or not in the file that the index names.
    """
    tensors: Tensors = {}
    for held in files:
        for name, tensor in held.items():
            if name in tensors:
                both = f"{tensors[name].file.name} and {tensor.file.name}"
                raise CheckpointError(f"'{name}' is in both {both} of {where}; download it again")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{where}/{file} lacks '{name}', which the index says it holds; download it again")
    return tensors


def is_plain_name(file: object) -> bool:
    """Whether an index names a file of its own folder."""
    return isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file


def explain_absence(folder: Path) -> str:
    """Why there are no safetensors, and what to do about it."""
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder} holds its weights as pickle, which can run code and is never read; convert it once with "
            f"transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    if any(folder.glob("*.gguf")):
        return f"{folder} holds GGUF, which is not read; use the same model's safetensors checkpoint"
    return f"{folder} is no checkpoint: it has neither {SINGLE} nor {INDEX}"
