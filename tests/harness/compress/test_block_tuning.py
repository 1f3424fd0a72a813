import multiprocessing
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.compress.block_tuning import BlockTuning
from trinity.harness.recipes import recipe
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter

TEXT = {"dataset": "pydoc", "samples": 4, "seqlen": 24, "rule": "concatenated"}
STEPS = [{"method": "slim", "pattern": "2:4", "rank": 4}]
BEAM_STEP = {"method": "beam", "learning_rates": [1e-3], "epochs": 2}
FORK = multiprocessing.get_context("fork")  # torch is loaded already


def _run(store: StageStore, dtype: str = "float32", **compress: Any) -> Run:
    data = {
        "name": "test",
        "model": {"id": "random:tiny-llama", "dtype": dtype},
        "compress": {"steps": STEPS, **compress},
        "calibration": TEXT,
    }
    return Run(recipe.parse(data, "test"), store, Reporter(quiet=True))


def _output(folder: Path, index: int, hidden: torch.Tensor, run: Run) -> torch.Tensor:
    """Of one block of a checkpoint, computed in a model that is loaded whole."""
    model = Checkpoint.open(folder).load_model()
    positions = torch.arange(hidden.shape[1])[None]
    rotary = model.model.rotary_emb(hidden, positions)
    with torch.no_grad():
        found: torch.Tensor = model.model.layers[index](hidden, position_embeddings=rotary)
    return found


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_tuned_block_is_nearer_to_the_block_that_it_was(tmp_path: Path, mode: str) -> None:
    """Oracle: whole models, forwarded whole up to the block."""
    store = StageStore(tmp_path / "cache")
    dense, before = _run(store, steps=[]), _run(store)
    after = _run(store, tune={**BEAM_STEP, "mode": mode})
    text = before.draw_calibration()
    assert text is not None
    folders = [run.compress() for run in (dense, before, after)]
    models = [Checkpoint.open(folder).load_model() for folder in folders]
    source = models[0] if mode == "offline" else models[2]
    for index in range(2):
        errors = [0.0, 0.0]
        for ids in text[0]:
            with torch.no_grad():
                hidden = source(ids[None], output_hidden_states=True).hidden_states[index]
            wanted, *found = (_output(folder, index, hidden, dense) for folder in folders)
            new = [float((y - wanted).square().mean()) / 4 for y in found]
            errors = [sum(pair) for pair in zip(errors, new, strict=True)]
        assert errors[1] < errors[0]
        name = f"model.layers.{index}.mlp.down_proj"
        told = Checkpoint.open(folders[2]).summary["layers"][name]["diagnostics"][-1]
        assert told["method"] == "beam"
        assert told["error_before"] == pytest.approx(errors[0], rel=1e-3)
        assert told["error_after"] == pytest.approx(errors[1], rel=1e-3)


def test_offline_a_tuned_block_depends_on_no_other(tmp_path: Path) -> None:
    """Neither method of compression looks at inputs, so the second block differs in none."""
    steps = [{"method": "magnitude", "pattern": "2:4"}]
    other = [{"method": "rtn", "group_size": 8}]

    def weights(**layers: Any) -> list[bytes]:
        run = _run(StageStore(tmp_path / str(len(layers))), steps=steps, tune=BEAM_STEP, **layers)
        folder = run.compress()
        return [(folder / f"model-block-0000{index}.safetensors").read_bytes() for index in (0, 1)]

    plain = weights()
    first = weights(layers={"model.layers.0.*": other})
    assert plain[0] != first[0]
    assert plain[1] == first[1]


def test_online_a_tuned_block_follows_those_before(tmp_path: Path) -> None:
    steps = [{"method": "magnitude", "pattern": "2:4"}]
    tune = {**BEAM_STEP, "mode": "online"}
    found = []
    for number, layers in enumerate(({}, {"model.layers.0.*": [{"method": "rtn"}]})):
        run = _run(StageStore(tmp_path / str(number)), steps=steps, tune=tune, layers=layers)
        found.append((run.compress() / "model-block-00001.safetensors").read_bytes())
    assert found[0] != found[1]


def test_both_modes_agree_on_the_first_block_and_on_all_of_an_uncompressed_model(
    tmp_path: Path,
) -> None:
    store = StageStore(tmp_path / "cache")
    for steps, blocks in ((STEPS, [0]), ([], [0, 1])):
        made = [
            _run(store, steps=steps, tune={**BEAM_STEP, "mode": mode}).compress()
            for mode in ("offline", "online")
        ]
        for index in blocks:
            name = f"model-block-0000{index}.safetensors"
            assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()


def test_an_uncompressed_model_stays_bit_for_bit(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    before, after = _run(store, steps=[]), _run(store, steps=[], tune=BEAM_STEP)
    one, other = (Checkpoint.open(run.compress()) for run in (before, after))
    for name in one.formats:
        assert torch.equal(one.weight(name).dequantize(), other.weight(name).dequantize())
        assert other.summary["layers"][name]["diagnostics"][-1]["error_before"] == 0.0


def test_blocks_of_16_bits_are_tuned(tmp_path: Path) -> None:
    """Weights in training are float32, the block is not."""
    run = _run(StageStore(tmp_path / "cache"), "bfloat16", tune=BEAM_STEP)
    layers = Checkpoint.open(run.compress()).summary["layers"]
    told = [layer["diagnostics"][-1] for layer in layers.values()]
    assert all(each["error_after"] < each["error_before"] for each in told)


def test_a_run_that_ended_early_goes_on_at_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _run(StageStore(tmp_path / "whole"), tune=BEAM_STEP).compress()
    store, tuned, real = StageStore(tmp_path / "cache"), [], BlockTuning._tuned

    def once(self: BlockTuning, where: str, *given: Any) -> Any:
        tuned.append(where)
        if len(tuned) == 2:
            raise KeyboardInterrupt
        return real(self, where, *given)

    monkeypatch.setattr(BlockTuning, "_tuned", once)
    with pytest.raises(KeyboardInterrupt):
        _run(store, tune=BEAM_STEP).compress()
    found = _run(store, tune=BEAM_STEP).compress()
    assert tuned == ["model.layers.0", "model.layers.1", "model.layers.1"]
    for path in expected.glob("*.safetensors"):
        assert path.read_bytes() == (found / path.name).read_bytes()


def _one_of_two(root: Path, both: Any, taken: Any) -> None:
    """A process that tunes no block before the other has one in hand too."""
    real = BlockTuning._tuned

    def together(self: BlockTuning, where: str, *given: Any) -> Any:
        taken.put(where)
        both.wait(300)
        return real(self, where, *given)

    BlockTuning._tuned = together  # type: ignore[method-assign]  # this process ends with it
    _run(StageStore(root), tune=BEAM_STEP).compress()


def test_two_processes_share_offline_blocks_and_end_with_the_bytes_of_one(tmp_path: Path) -> None:
    expected = _run(StageStore(tmp_path / "whole"), tune=BEAM_STEP).compress()
    root, both, taken = tmp_path / "cache", FORK.Barrier(2), FORK.SimpleQueue()
    processes = [FORK.Process(target=_one_of_two, args=(root, both, taken)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(taken.get() for _ in range(2)) == ["model.layers.0", "model.layers.1"]
    assert taken.empty()
    found = _run(StageStore(root), tune=BEAM_STEP).compress()
    for path in expected.glob("*.safetensors"):
        assert path.read_bytes() == (found / path.name).read_bytes()


def test_a_block_that_another_process_gave_up_is_tuned_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs are reached from the start again: those of the block after it came before."""
    expected = _run(StageStore(tmp_path / "whole"), tune=BEAM_STEP).compress()
    answers, tuned, real = iter([False, True, True]), [], BlockTuning._tuned
    monkeypatch.setattr(StageStore, "claim", lambda *_: nullcontext(next(answers)))

    def noted(self: BlockTuning, where: str, *given: Any) -> Any:
        tuned.append(where)
        return real(self, where, *given)

    monkeypatch.setattr(BlockTuning, "_tuned", noted)
    found = _run(StageStore(tmp_path / "cache"), tune=BEAM_STEP).compress()
    assert tuned == ["model.layers.1", "model.layers.0"]
    for path in expected.glob("*.safetensors"):
        assert path.read_bytes() == (found / path.name).read_bytes()
