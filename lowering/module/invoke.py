"""Compiled modules as functions of token ids, by the IREE runtime."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import iree.runtime as rt
import numpy as np
import torch
from torch import Tensor

from trinity.lowering import names
from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.module.devices import STATUS_ERRORS, batch_scheduling, open_device
from trinity.lowering.targets.targets import Target
from trinity.lowering.weight_storage import CodePath
from trinity.methods.errors import ConfigError, LoweringError, MachineError

# Bytes are signless in modules, which the runtime checks: uint8 goes in as INT_8.
ELEMENT_TYPES = {
    torch.float32: (rt.HalElementType.FLOAT_32, torch.float32),
    torch.float16: (rt.HalElementType.FLOAT_16, torch.int16),
    torch.bfloat16: (rt.HalElementType.BFLOAT_16, torch.int16),
    torch.int16: (rt.HalElementType.INT_16, torch.int16),
    torch.int32: (rt.HalElementType.INT_32, torch.int32),
    torch.int64: (rt.HalElementType.INT_64, torch.int64),
    torch.uint8: (rt.HalElementType.INT_8, torch.int8),
}


class Loaded:
    """One module on a device, its parameters from a file or none."""

    def __init__(self, vmfb: bytes, target: Target, parameters: Path | None = None) -> None:
        """MachineError if this machine has no such device."""
        self.device = open_device(target)
        # Contexts and functions do not keep alive all that they point to; this object does.
        self.instance = rt.VmInstance()
        self.modules = [rt.create_hal_module(self.instance, self.device)]
        if parameters is not None:
            self.index = rt.ParameterIndex()
            self.index.load(str(parameters), format="safetensors")
            self.provider = self.index.create_provider(scope=names.SCOPE)
            self.modules.append(rt.create_io_parameters_module(self.instance, self.provider))
        try:
            self.modules.append(rt.VmModule.copy_buffer(self.instance, vmfb))
            self.context = rt.VmContext(self.instance, modules=self.modules)
        except STATUS_ERRORS as error:
            reason = str(error).partition("\n")[0]
            msg = (
                f"target {target.name}: the module and its parameters {parameters} do not load "
                f"({reason}). Were both made for the same checkpoint by the same version?"
            )
            raise LoweringError(msg) from error
        module = self.modules[-1]
        self.functions = {name: module.lookup_function(name) for name in module.function_names}

    @batch_scheduling()
    def call(self, name: str, arguments: Sequence[rt.HalBufferView]) -> rt.HalBufferView:
        """Call an exported function of one result."""
        inputs, outputs = rt.VmVariantList(len(arguments)), rt.VmVariantList(1)
        for argument in arguments:
            inputs.push_ref(argument)
        self.context.invoke(self.functions[name], inputs, outputs)
        return outputs.get_as_ref(0).deref(rt.HalBufferView)

    def put(self, tensor: Tensor) -> rt.HalBufferView:
        """Copy a tensor to the device."""
        element_type, same_width = ELEMENT_TYPES[tensor.dtype]
        return self.device.allocator.allocate_buffer_copy(
            memory_type=rt.MemoryType.DEVICE_LOCAL,
            allowed_usage=rt.BufferUsage.DEFAULT,
            device=self.device,
            buffer=tensor.contiguous().view(same_width).numpy(),
            element_type=element_type,
        )

    @batch_scheduling()
    def fetch(self, view: rt.HalBufferView) -> Tensor:
        """Copy a float32 array from the device.

        Through a buffer of the allocator's own: importing NumPy's memory fails on Vulkan, where it
        would have to start on a page.
        """
        source = view.get_buffer()
        staging = self.device.allocator.allocate_buffer(
            memory_type=int(rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE),
            allowed_usage=int(rt.BufferUsage.TRANSFER_TARGET | rt.BufferUsage.MAPPING_SCOPED),
            allocation_size=source.byte_length(),
        )
        semaphore = self.device.create_semaphore(0)
        start, end = rt.HalFence.create_at(semaphore, 0), rt.HalFence.create_at(semaphore, 1)
        self.device.queue_copy(source, staging, wait_semaphores=start, signal_semaphores=end)
        end.wait()
        mapped = staging.map().asarray(view.shape, np.dtype(np.float32))
        return torch.from_numpy(mapped.copy())


class CompiledModel:
    """A lowered model with its weights on a device.

    Reads `module.vmfb` and `module.json`, as `LoweredModel.save` wrote them, and a parameter file.
    """

    def __init__(self, folder: Path, parameters: Path, target: Target) -> None:
        """Load the module and its parameters; MachineError without the device or the processor's
        part that it was compiled for.
        """
        self.meta = json.loads((folder / "module.json").read_text("utf-8"))
        if self.meta["target"] != target.name:
            msg = f"{folder}: compiled for {self.meta['target']}, asked to run on {target.name}."
            raise ConfigError(msg)
        if cpu := cpus.get(self.meta.get("cpu", cpus.HOST)):
            cpu.require()
        kernels = target.kernels() if target.kernels else None
        if kernels and (lacking := kernels.lacking(self.meta.get("flavour"))):
            msg = f"{folder}: compiled for {lacking}."
            raise MachineError(msg)
        self.target = target
        self.path: CodePath = self.meta["path"]
        self.max_length: int = self.meta["max_length"]
        self.loaded = Loaded((folder / "module.vmfb").read_bytes(), target, parameters)
        self.batch: int = self.meta["cache"][0]
        self.cache_length: int = self.meta["cache"][2]
        self.chunk: int = max(self.meta["lengths"])
        self.dtype: torch.dtype = getattr(torch, self.meta["dtype"])
        numbers: int = prod(self.meta["cache"]) * self.meta["caches"]
        self.cache_bytes = numbers * self.dtype.itemsize

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits after every position.

        ids: int64 [batch, seq] -> float32 [batch, seq, vocab]
        """
        return torch.cat(list(CompiledSession(self).feed(ids)), dim=1)

    def session(self) -> "CompiledSession":
        """New, empty sequences: as many as the module was compiled for."""
        return CompiledSession(self)


class CompiledSession:
    """Sequences of one length on the device, and their key/value caches."""

    def __init__(self, model: CompiledModel) -> None:
        """Start empty."""
        self.model = model
        empty = torch.zeros(model.meta["cache"], dtype=model.dtype)
        self.caches = [model.loaded.put(empty) for _ in range(model.meta["caches"])]
        self.length = 0

    def prefill(self, ids: Tensor) -> Tensor:
        """Append ids.  int64 [batch, seq] -> logits of the last position, float32 [batch, vocab]"""
        loaded, parts = self.model.loaded, self._parts(ids, self.model.chunk)
        steps = ((self._run(tokens, size), tokens.shape[1], size) for tokens, size in parts)
        ((found, count, size),) = deque(steps, maxlen=1)
        if size > 1:
            last = loaded.put(torch.tensor([count - 1]))
            found = loaded.call(names.last_head(size), [found, last])
        return loaded.fetch(found)[:, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each sequence.

        int64 [batch] -> logits after it, float32 [batch, vocab].  No copy of torch's: it would
        wake threads that go on spinning for milliseconds on the processors that the module's own
        threads need in the next step.
        """
        part = next(self._parts(tokens[:, None], 1))
        return self.model.loaded.fetch(self._run(*part))[:, -1]

    def feed(self, ids: Tensor) -> Iterator[Tensor]:
        """Append ids in chunks, at least one.

        int64 [batch, seq]
        -> of each chunk, logits after every position, float32 [batch, chunk, vocab]
        """
        loaded = self.model.loaded
        for tokens, size in self._parts(ids, self.model.chunk):
            found = self._run(tokens, size)
            if size > 1:
                found = loaded.call(names.head(size), [found])
            yield loaded.fetch(found)[:, : tokens.shape[1]]

    def _parts(self, ids: Tensor, chunk: int) -> Iterator[tuple[Tensor, int]]:
        """Ids of each step, int64 [batch, up to size], and its size; a step must run before the
        next part is asked for.
        """
        sequences, count = ids.shape
        end, limit = self.length + count, self.model.max_length
        if sequences != self.model.batch:
            msg = (
                f"{sequences} sequences do not fit the module: it was compiled for "
                f"{self.model.batch} at once."
            )
            raise ConfigError(msg)
        if count == 0 or end > limit:
            msg = (
                f"a sequence of {end} tokens does not fit the module: "
                f"it was compiled for 1 to {limit}."
            )
            raise ConfigError(msg)
        while self.length < end:
            # A padded step must not write past the end of the caches.
            size = chunk if self.length + chunk <= self.model.cache_length else 1
            start = count - (end - self.length)
            yield ids[:, start : start + size], size

    def _run(self, tokens: Tensor, size: int) -> rt.HalBufferView:
        """One step, padded at its end: later positions overwrite what padding leaves in the
        caches.  -> logits of one token, hidden states of more
        """
        count = tokens.shape[1]
        ids = torch.nn.functional.pad(tokens, (0, size - count))
        positions = torch.arange(self.length, self.length + size)
        loaded = self.model.loaded
        self.length += count
        name = names.STEP if size == 1 else names.trunk(size)
        return loaded.call(name, [loaded.put(ids), loaded.put(positions), *self.caches])
