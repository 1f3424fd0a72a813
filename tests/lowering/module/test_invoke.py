import json
import os
from collections.abc import Sequence
from pathlib import Path

import iree.runtime as rt
import numpy as np
import pytest
import torch
from torch import Tensor

from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS
from trinity.lowering.module import devices
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import CompiledModel, CompiledSession, Loaded
from trinity.lowering.targets import targets
from trinity.methods.errors import MachineError


class Module:
    """In the place of a loaded module: logits, and hidden states, are the ids, seven times."""

    def put(self, tensor: Tensor) -> Tensor:
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        return tensor

    def call(self, name: str, arguments: Sequence[Tensor]) -> Tensor:
        function, _, size = name.partition("_")
        first = arguments[0]
        if function in ("step", "trunk"):
            assert first.shape[1] == int(size or 1)
            repeated = np.repeat(first.numpy()[..., None], 7, 2).astype(np.float32)
            return torch.from_numpy(repeated)
        assert first.shape[1] == int(size)
        return first if function == "head" else first[:, arguments[1]]


class Fed(CompiledSession):
    """A session of a model without a device."""

    def __init__(self, chunk: int, batch: int = 1) -> None:
        """chunk: tokens of a prefill step"""
        self.model = CompiledModel.__new__(CompiledModel)
        self.model.batch = batch
        self.model.max_length = self.model.cache_length = 8
        self.model.chunk = chunk
        self.model.loaded = Module()  # type: ignore[assignment]
        self.caches = []
        self.length = 0


def test_logits_of_several_steps_stand_one_after_the_other() -> None:
    found = torch.cat(list(Fed(chunk=2).feed(torch.tensor([[3, 1, 4, 1, 5]]))), dim=1)
    assert found.shape == (1, 5, 7)
    assert found[0, :, -1].tolist() == [3, 1, 4, 1, 5]


def test_a_prompt_in_several_steps_gives_each_sequence_its_last_logits() -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 8]])
    assert Fed(chunk=2, batch=2).prefill(ids).tolist() == [[5.0] * 7, [8.0] * 7]


def test_a_step_wakes_none_of_torchs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # They would spin beside the next step: measured, a step of 15 ms took 20.
    def parallel(*_: object) -> None:
        pytest.fail("torch.cat copies with every thread of its pool")

    monkeypatch.setattr(torch, "cat", parallel)
    session = Fed(chunk=2)
    assert session.prefill(torch.tensor([[1, 2, 3]])).tolist() == [[3.0] * 7]
    assert session.step(torch.tensor([4])).tolist() == [[4.0] * 7]


def test_a_module_for_matrix_units_is_refused_where_the_system_does_not_grant_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    features = INSTRUCTIONS["amx"].features
    monkeypatch.setattr("trinity.lowering.kernels.cpu.processor.features", lambda: features)
    monkeypatch.setattr("trinity.lowering.kernels.cpu.processor.may_use_tiles", lambda: False)
    meta = {"target": "llvm-cpu", "flavour": "amx"}
    (tmp_path / "module.json").write_text(json.dumps(meta), "utf-8")
    with pytest.raises(MachineError, match="Linux does not grant AMX"):
        CompiledModel(tmp_path, tmp_path / "parameters.safetensors", targets.get("llvm-cpu"))


class Driver:
    """A driver of the runtime that lists one device, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def query_available_devices(self) -> list[dict[str, object]]:
        if self.error:
            raise self.error
        return [{"device_id": 0, "path": "", "name": "default"}]


# As the runtime raises them: without the loader's library or a symbol in it, without a driver
# behind the loader, and what its other status codes become.
FAILURES = [
    ValueError("Error creating driver: NOT_FOUND; Vulkan loader library not found"),
    RuntimeError("Error querying devices: UNAVAILABLE; [vkCreateInstance] INCOMPATIBLE_DRIVER"),
    IndexError("Error creating driver: OUT_OF_RANGE"),
    NotImplementedError("Error creating driver: UNIMPLEMENTED"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_driver_that_is_missing_or_broken_has_no_device(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_driver(name: str) -> Driver:
        raise error

    monkeypatch.setattr(rt, "get_driver", get_driver)
    assert not devices.has_device("vulkan")
    monkeypatch.setattr(rt, "get_driver", lambda name: Driver(error))
    assert not devices.has_device("vulkan")


class Described(Driver):
    """A driver of one device, which says what it is, as IREE's for AMD's GPUs does."""

    def __init__(self, info: str) -> None:
        super().__init__()
        self.info = info

    def dump_device_info(self, _: int) -> str:
        return self.info


@pytest.mark.parametrize(
    ("info", "runs", "said"),
    [
        ("- gpu-compute-capability: 9.4\n- gpu-arch-name: gfx942:sramecc+:xnack-\n", True, ""),
        ("- gpu-arch-name: gfx90a:sramecc+:xnack-\n", False, "the GPU here is of gfx90a"),
        ("- gpu-arch-name: gfx9421\n", False, "the GPU here is of gfx9421"),
        ("- name: something\n", False, "that its driver does not tell"),
    ],
)
def test_a_module_for_one_architecture_runs_on_no_other(
    monkeypatch: pytest.MonkeyPatch, info: str, runs: bool, said: str
) -> None:
    monkeypatch.setattr(rt, "query_available_drivers", lambda: ["hip"])
    monkeypatch.setattr(rt, "get_driver", lambda _: Described(info))
    target = targets.get("rocm-gfx942")
    assert devices.available(target) == runs
    assert said in (devices.lacking(target) or "")
    if not runs:
        with pytest.raises(MachineError, match="rocm-gfx942: modules compile but cannot run here"):
            devices.require(target)


def test_every_driver_answers_on_every_machine() -> None:
    answers = {name: devices.has_device(name) for name in rt.query_available_drivers()}
    assert answers["local-task"]
    assert not devices.has_device("of another planet")


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_device_that_does_not_start_is_the_machines_fault(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_device(driver: str) -> None:
        raise error

    monkeypatch.setattr(rt, "get_driver", lambda name: Driver())
    monkeypatch.setattr(rt, "get_device", get_device)
    with pytest.raises(MachineError, match=r"target vulkan: .*does not start") as raised:
        Loaded(b"", targets.get("vulkan"))
    assert raised.value.__cause__ is error


class Watched:
    """A device that notes how the thread is scheduled that asks for a copy."""

    def __init__(self, device: object) -> None:
        self.device, self.policies = device, list[int]()

    def __getattr__(self, name: str) -> object:
        if name == "queue_copy":
            self.policies.append(os.sched_getscheduler(0))
        return getattr(self.device, name)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="batch scheduling is Linux's")
def test_a_result_is_waited_for_on_nobodys_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = targets.get("llvm-cpu")
    code = "func.func @same(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }"
    loaded, before = Loaded(compile_text(code, cpu), cpu), os.sched_getscheduler(0)
    x = torch.randn(4)
    stored = loaded.put(x)
    watched = Watched(loaded.device)
    monkeypatch.setattr(loaded, "device", watched)
    assert torch.equal(loaded.fetch(stored), x)
    assert watched.policies == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == before
