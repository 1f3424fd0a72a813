"""Kinds of processors: what code for them may use, and where it runs."""

import platform

import pytest

from trinity.lowering.kernels.cpu import cpus, processor
from trinity.lowering.module import devices
from trinity.lowering.targets import targets
from trinity.methods.errors import ConfigError, MachineError


def test_a_target_for_another_kind_of_processor_has_its_flags_and_no_others() -> None:
    target = targets.get("llvm-cpu", "x86-64-v3")
    assert "--iree-llvmcpu-target-cpu=x86-64-v3" in target.flags
    assert "--iree-llvmcpu-target-cpu=host" not in target.flags
    assert targets.get("llvm-cpu", "host") is targets.get("llvm-cpu")


def test_a_kind_that_nobody_knows_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"cpu 'v3' is not known; .* host, .*x86-64-v3"):
        targets.get("llvm-cpu", "v3")


@pytest.mark.parametrize("target", ["vulkan", "cuda", "rocm"])
def test_other_targets_have_no_processor_to_choose(target: str) -> None:
    with pytest.raises(ConfigError, match=f"target {target}: it has no cpu to choose"):
        targets.get(target, "x86-64-v3")


def test_what_keeps_code_from_running_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "features", lambda: cpus.V3)
    assert cpus.CPUS["x86-64-v3"].missing is None
    lacking = "this processor lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl"
    assert cpus.CPUS["x86-64-v4"].missing == lacking
    assert not devices.available(targets.get("llvm-cpu", "x86-64-v4"))
    with pytest.raises(MachineError, match=rf"cpu x86-64-v4: .* cannot run here: {lacking}"):
        devices.require(targets.get("llvm-cpu", "x86-64-v4"))
    with pytest.raises(MachineError, match="this machine is x86_64 and not aarch64"):
        devices.require(targets.get("llvm-cpu", "neoverse-n1"))


def test_matrix_units_that_linux_does_not_grant_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "features", lambda: cpus.SAPPHIRE_RAPIDS)
    monkeypatch.setattr(processor, "may_use_tiles", lambda: False)
    assert "Linux does not grant" in str(cpus.CPUS["sapphirerapids"].missing)
