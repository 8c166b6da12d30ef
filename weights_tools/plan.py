"""What each shard will hold: which parameters a stage has, and which of them are one tensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from weights_tools.checkpoint import Checkpoint, CheckpointError
from weights_tools.convert import pieces
from weights_tools.partition import Ranges
from weights_tools.quantize import quantized
from weights_tools.skeleton import build_frame, find_layers, layer_of, linear_weights, rename_layer
from weights_tools.sources import Parameter, find_sources
from weights_tools.tiny import head_modules, random_model, shrink


@dataclass(slots=True)
class StagePlan:
    """What one shard will hold: parameters by the stage's own names, and which of them share another's tensor."""

    first_layer: int
    end_layer: int
    stored: dict[str, Parameter]
    tied: dict[str, str]

    @property
    def bytes(self) -> int:
        """Size of all stored tensors."""
        return sum(parameter.bytes for parameter in self.stored.values())


class Model:
    """A checkpoint's parameters and their places.

    Raises:
        Unservable: an architecture whose layers cannot be found or that cannot be built.
        CheckpointError: parameters that the checkpoint has no tensors for, or tensors of other shapes.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.checkpoint = checkpoint
        self.frame = build_frame(checkpoint.config, torch.bfloat16 if dtype == "int8" else getattr(torch, dtype))
        self.layers_path, layers = find_layers(self.frame)
        self.layers = len(layers)
        self._after = head_modules(random_model(shrink(checkpoint.config)))
        self.parameters = find_sources(self.frame, checkpoint)
        self.tied: dict[str, str] = dict(getattr(self.frame, "all_tied_weights_keys", None) or {})
        self._find_tied()
        names = list(self.frame.state_dict())
        if missing := [name for name in names if name not in self.parameters and name not in self.tied]:
            share = f"{len(missing)} of {len(names)} parameters"
            raise CheckpointError(f"{checkpoint.where} lacks '{missing[0]}' ({share}); download it again")
        if dtype == "int8":
            self._quantize()

    def _find_tied(self) -> None:
        """If the checkpoint holds one of two tied parameters, then that is the value of both, whichever it is."""
        for target, source in self.tied.items():
            if source not in self.parameters:
                stored = [name for name, other in self.tied.items() if other == source and name in self.parameters]
                if stored:
                    self.parameters[source] = replace(self.parameters[stored[0]], name=source)
            if target in self.parameters and self.parameters[target].sources == self.parameters[source].sources:
                del self.parameters[target]

    def _quantize(self) -> None:
        """Have the weights of linear layers stored as int8. A head that is tied to the embedding is one of them, and no
        longer the same tensor; what an architecture keeps in float32 stays."""
        for name in linear_weights(self.frame):
            parameter = self.parameters.get(name) or self.parameters[self.tied[name]]
            if name not in self.tied.values() and parameter.dtype == torch.bfloat16:
                self.parameters[name] = quantized(parameter, name)
                self.tied.pop(name, None)

    def _same(self, name: str, other: str) -> bool:
        """Whether two parameters are stored as the same bytes; read in pieces, as they may be large."""
        one, two = self.parameters[name], self.parameters[other]
        if one.shape != two.shape or one.dtype != two.dtype:
            return False
        return self._digest(one) == self._digest(two)

    def _digest(self, parameter: Parameter) -> bytes:
        digest = hashlib.sha256()
        for piece in pieces(parameter, self.checkpoint.tensors, self.frame):
            digest.update(piece)
        return digest.digest()

    def stage_of(self, name: str, ranges: Ranges) -> int:
        """The stage that needs a parameter."""
        layer = layer_of(name, self.layers_path)
        if layer is not None:
            return next(stage for stage, (first, end) in enumerate(ranges) if first <= layer < end)
        return len(ranges) - 1 if self._follows_layers(name) else 0

    def plan(self, ranges: Ranges) -> list[StagePlan]:
        """What each shard holds, when cut into these ranges."""
        return [self.plan_stage(ranges, stage) for stage in range(len(ranges))]

    def plan_stage(self, ranges: Ranges, stage: int) -> StagePlan:
        """What one shard holds, when the model is cut into these ranges.

        A tie that the checkpoint contradicts, holding both with different values, is none, as in `from_pretrained`. That
        matters only where both are on one stage, so only there are the two compared: it means to read them.
        """
        first, end = ranges[stage]
        plan = StagePlan(first, end, {}, {})
        for name, parameter in self.parameters.items():
            if self.stage_of(name, ranges) == stage:
                plan.stored[rename_layer(name, self.layers_path, first)] = parameter
        for target, source in self.tied.items():
            if self.stage_of(target, ranges) != stage:
                continue
            local = rename_layer(target, self.layers_path, first)
            together = self.stage_of(source, ranges) == stage
            if together and (target not in self.parameters or self._same(target, source)):
                plan.stored.pop(local, None)
                plan.tied[local] = rename_layer(source, self.layers_path, first)
            elif target not in self.parameters:
                plan.stored[local] = self.parameters[source]
        return plan

    def costs(self) -> tuple[list[int], int, int]:
        """Bytes of each layer, of what follows the last one, and of what precedes the first."""
        layers, head, embedding = [0] * self.layers, 0, 0
        for name in {**self.parameters, **self.tied}:
            size = self.parameters[name if name in self.parameters else self.tied[name]].bytes
            layer = layer_of(name, self.layers_path)
            if layer is not None:
                layers[layer] += size
            elif self._follows_layers(name):
                head += size
            else:
                embedding += size
        return layers, head, embedding

    def _follows_layers(self, name: str) -> bool:
        return any(name.startswith(path + ".") for path in self._after)
