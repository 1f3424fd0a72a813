"""Which heavy packages a command or a layer loads: what is loaded for nothing costs seconds."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from trinity.harness.installed import registered
from trinity.methods import registry
from trinity.methods.catalogue import CATALOGUE

HEAVY = (
    "accelerate",
    "datasets",
    "gguf",
    "huggingface_hub",
    "iree",
    "lm_eval",
    "numpy",
    "pandas",
    "pydantic",
    "scipy.stats",
    "torch",
    "torch_mlir",
    "transformers",
)
READS = ["pydantic"]  # recipes, records, options; typer loads it too
COUNTS = ["numpy", "pydantic"]  # intervals and tests
COMPUTES = ["numpy", "pydantic", "torch"]

# In one process, one after the other: what is loaded before is loaded still.
COMMANDS: list[tuple[str, int, list[str]]] = [
    ("--help", 0, []),
    ("repro --help", 0, READS),
    ("lowr", 2, READS),
    ("eval x", 2, READS),
    ("methods list", 0, READS),
    ("methods show wandas", 2, READS),
    ("methods check wandas", 2, READS),
    ("run absent.yaml", 2, READS),
    ("run recipe.yaml", 2, READS),
    ("plan absent.yaml", 2, READS),
    ("sweep absent.yaml", 2, READS),
    ("sweep sweep.yaml --threads 1", 2, READS),
    ("train random:tiny-lama --out x", 2, READS),
    ("train random:tiny-llama --out x --set step=3", 2, READS),
    ("compress random:tiny-lama --method rtn --out x", 2, READS),
    ("compress random:tiny-llama --method rtm --out x", 2, READS),
    ("lower absent --out x", 2, READS),
    ("lower . --out x", 2, READS),
    ("export absent --format gptq --out x", 2, READS),
    ("export absent --format gtpq --out x", 2, READS),
    ("audit absent", 2, READS),
    ("eval ./absent --suite perplexity-pydoc", 2, READS),
    ("eval random:tiny-llama --suite perplexity-pydocs", 2, READS),
    ("bench random:tiny-llama --suite decoding", 2, READS),
    ("bench random:tiny-llama --suite decode --target llvm-gpu", 2, READS),
    ("compare absent.json absent.json", 2, COUNTS),
    ("compare random:tiny-llama random:tiny-lama --suite perplexity-pydoc", 2, COUNTS),
    ("gate --baseline absent.json", 2, COUNTS),
    ("gate --policy absent.yaml --baseline last:1", 2, COUNTS),
    ("history perplexity --out absent", 2, COUNTS),
    ("bisect absent.json absent.json", 2, COUNTS),
    ("table --sql x --out absent", 2, COUNTS),
    ("repro slm", 2, COUNTS),
    ("repro slim --table tabel1", 2, COUNTS),
    ("repro slim --profile smok", 2, COUNTS),
    ("table slm", 2, COUNTS),
    ("table slim --out absent", 2, COUNTS),
    ("compare {record} {record}", 0, COUNTS),
    ("history perplexity --out {results}", 0, COUNTS),
    ("table slim --out {results}", 0, COUNTS),
    ("compress random:tiny-llama --method rtn --set bit=4 --out x", 2, COMPUTES),
]
LAYERS = [
    ("trinity.methods.errors", []),
    ("trinity.harness.runs.requests", READS),
    ("trinity.harness.report.tables", COUNTS),
    ("trinity.methods.wanda", COMPUTES),
    ("trinity.methods.conformance", COMPUTES),
    ("trinity.lowering.lower", COMPUTES),
    ("trinity.harness.accuracy.perplexity", COMPUTES),
    # transformers loads scipy.stats itself. No compiler, no runtime, no evaluation harness.
    (
        "trinity.harness.runs.run",
        [*COMPUTES, "accelerate", "huggingface_hub", "scipy.stats", "transformers"],
    ),
]

PROGRAM = f"""
import contextlib, importlib, io, json, sys
answers = []
for line in json.load(sys.stdin):
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if line.startswith("trinity."):
            importlib.import_module(line)
        else:
            from trinity.harness import cli
            sys.argv = ["trinity", *line.split()]
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
    answers.append((code, [name for name in {HEAVY} if name in sys.modules]))
print(json.dumps(answers))
"""


def _loaded(lines: list[str], folder: Path) -> list[tuple[int, list[str]]]:
    """Exit code of each command, or 0 of each module, and what is loaded after it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    answers: list[tuple[int, list[str]]] = json.loads(done.stdout)
    return answers


def test_commands_load_what_they_need_and_wrong_words_nothing(
    project_root: Path, tmp_path: Path
) -> None:
    model = project_root / "results" / "v1" / "SmolLM2-135M-Instruct"
    record = next((model / "wanda-2of4").glob("*.json"))
    copied = tmp_path / "some" / "v1" / record.relative_to(model.parent)
    copied.parent.mkdir(parents=True)
    copied.write_bytes(record.read_bytes())
    recipe = "model: {id: random:tiny-llama}\ncompress: {steps: [{method: wada}]}\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "sweep.yaml").write_text("recipes: [recipe.yaml]\n", encoding="utf-8")
    lines = [line.format(record=copied, results=tmp_path / "some") for line, *_ in COMMANDS]
    answers = _loaded(lines, tmp_path)
    for (line, code, allowed), (ended, loaded) in zip(COMMANDS, answers, strict=True):
        assert ended == code, line
        assert set(loaded) <= set(allowed), line


def test_layers_load_what_they_need(tmp_path: Path) -> None:
    answers = _loaded([module for module, _ in LAYERS], tmp_path)
    for (module, allowed), (_, loaded) in zip(LAYERS, answers, strict=True):
        assert set(loaded) <= set(allowed), module


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_the_listing_of_a_built_in_method_is_what_the_method_says(name: str) -> None:
    found = registered.entry_of(registry.get(name))
    assert asdict(CATALOGUE[name]) == asdict(found)


def test_every_listed_method_is_registered() -> None:
    assert set(CATALOGUE) == set(registry.BUILT_IN)
