"""Recipes: one run as frozen data, read from YAML with every unknown key refused."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trinity.harness.recipes import sections
from trinity.harness.recipes.resolution import Resolutions
from trinity.harness.recipes.sections import Section
from trinity.harness.recipes.yaml_loaders import RecipeLoader, RepeatedKeyError
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.methods.formats import InputFormat


def _names_a_file(name: str) -> str:
    if name in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
        msg = (
            f"'{name}' is to name files and folders: give letters, digits and ._+- only, and not "
            f"'.' or '..' (a recipe without `name:` is called like its file)"
        )
        raise ValueError(msg)
    return name


FileName = Annotated[str, AfterValidator(_names_a_file)]


class TrainingSpec(Section):
    """How a model is trained, by SLoPe's steps: `trinity train`, and models 'trained:NAME'.

    pattern: N:M of the sparse layers; None trains all of them dense
    mask: 'random' (the paper) or 'magnitude' (its code), drawn once
    backward: 'double-pruned', or 'exact' to see what the second mask costs
    dense: names of linears, or globs, that stay dense beside the first ones and the head
    rank: of the lazy adapters, 0 for none   adapter_share: last share of the steps that has them
    dataset, split: the text   batch, seqlen: windows of a step, and tokens of each
    start: 'weights' of the model, or 'random' numbers
    lr: of AdamW   warmup: steps in which it rises to that   schedule: what it does then; 'cosine'
        falls to a tenth
    accumulate: parts of a step's windows, one after the other   precision: of the products
    checkpointing: 'blocks' computes each block twice, and keeps its input alone in between
    sharding: 'blocks' divides parameters, gradients and moments over the processes of `torchrun`
    """

    pattern: str | None = None
    mask: Literal["random", "magnitude"] = "random"
    backward: Literal["double-pruned", "exact"] = "double-pruned"
    rank: NonNegativeInt = 0
    adapter_share: float = Field(default=0.01, gt=0, le=1)
    steps: PositiveInt = 400
    batch: PositiveInt = 16
    seqlen: PositiveInt = 128
    lr: PositiveFloat = 1e-3
    seed: int = 0
    dataset: str = "pydoc"
    split: str = "train"
    dense: tuple[str, ...] = ()
    start: Literal["weights", "random"] = "weights"
    warmup: NonNegativeInt = 0
    schedule: Literal["constant", "cosine"] = "constant"
    accumulate: PositiveInt = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: Literal["none", "blocks"] = "none"
    sharding: Literal["none", "blocks"] = "none"


class ModelSpec(Section):
    """What is compressed.

    id: a folder, 'package:NAME', 'random:NAME', 'trained:NAME' or a hub id
    revision: of a hub id   training: of a 'trained:' model, None for its defaults
    dtype: of activations and dense weights
    dense: the model that comparisons are against, where it is not `id` itself: of weights that were
        compressed elsewhere
    """

    id: str
    revision: str | None = None
    training: TrainingSpec | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    dense: str | None = None


class Step(BaseModel):
    """One compression step: a method's name, and options that the method's own config checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


Order = Literal["block", "true-sequential"]


class InputSpec(Section):
    """Inputs of the linears, rounded to 8 bits at run time.

    kind: 'fp8', one scale for the input of a call; 'int8', one for each token or group_size inputs
    """

    kind: Literal["fp8", "int8"]
    group_size: PositiveInt | None = None

    @field_validator("group_size")
    @classmethod
    def _groups_are_of_integers(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("kind") == "fp8":
            msg = "fp8 inputs share one scale; leave it out, or use kind: int8"
            raise ValueError(msg)
        return value

    @property
    def format(self) -> "InputFormat":
        """The declared property."""
        # Imported here: it loads torch, and reading a recipe must not.
        from trinity.methods.formats import InputFormat

        return InputFormat(self.kind, self.group_size)


class CalibrationSpec(Section):
    """Which text the statistics are taken on.

    rule: 'documents' (the papers': a window of one random document) or 'concatenated' (a window of
        all documents joined, for corpora of short texts)
    seeds: several, the first being `seed`: the run is repeated with each, and the record says how
        far its accuracies spread between them
    """

    dataset: str = "c4"
    split: str = "train"
    samples: PositiveInt = 128
    seqlen: PositiveInt = 2048
    seed: int = 0
    rule: Literal["documents", "concatenated"] = "documents"
    seeds: tuple[int, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _first_seed(cls, value: Any) -> Any:
        seeds = value.get("seeds") if isinstance(value, dict) else None
        if not seeds or not isinstance(seeds, (list, tuple)):
            return value
        if len(set(seeds)) < len(seeds):
            msg = f"calibration.seeds {list(seeds)} names a seed twice"
            raise ValueError(msg)
        if value.get("seed", seeds[0]) != seeds[0]:
            msg = f"calibration.seed {value['seed']} is not the first of seeds {list(seeds)}"
            raise ValueError(msg)
        return {**value, "seed": seeds[0]}

    def with_seed(self, seed: int) -> "CalibrationSpec":
        """The same text and rule with one seed."""
        return self.model_copy(update={"seed": seed, "seeds": ()})


TuneMode = Literal["offline", "online"]


class TuneSpec(Step):
    """What tunes the model after its last block, and on which text.

    data: the text, `calibration:` if None
    mode: of a method that tunes block by block. 'offline' (None): a block's inputs are those of the
        model before compression, so no block waits for another; 'online': they are what the tuned
        blocks before it put out
    """

    data: CalibrationSpec | None = None
    # Left out where it says nothing: recipes in older records have no such key.
    mode: TuneMode | None = Field(None, exclude_if=lambda mode: mode is None)


class CompressSpec(Section):
    """What is done to the linears of the blocks.

    steps: for all   skip: globs of layers left dense   layers: glob -> other steps
    order: 'block' calibrates all linears of a block on the uncompressed block; 'true-sequential'
        (GPTQ's option) calibrates linears with one input on the compressed linears before them
    inputs: what their inputs are rounded to; the weights are fitted to unrounded ones
    tune: one method for the compressed model, after all of them
    cache: the method that keeps keys and values when the model runs; None keeps floats
    """

    steps: tuple[Step, ...] = ()
    skip: tuple[str, ...] = ("lm_head",)
    layers: dict[str, tuple[Step, ...]] = Field(default={})
    order: Order = "block"
    inputs: InputSpec | None = None
    tune: TuneSpec | None = None
    # Left out where it says nothing, as `mode` is.
    cache: Step | None = Field(None, exclude_if=lambda cache: cache is None)


class LowerSpec(Section):
    """Where the module runs.

    target: what to compile for   length: tokens of a prefill call   context: cache positions
    cpu: for llvm-cpu, the kind of processor whose instructions it uses
    """

    target: str = "llvm-cpu"
    cpu: str = "host"
    length: PositiveInt = 128
    context: PositiveInt = 2048


class SuiteSpec(Section):
    """One accuracy suite and how much of it is run; None means all of it.

    resolve: instead of `limit` or `windows`, the difference that its samples are to show, or one of
        each unit
    """

    suite: str
    resolve: Resolutions | None = None
    windows: PositiveInt | None = None
    seqlen: PositiveInt | None = None
    limit: PositiveInt | None = None
    tasks: tuple[str, ...] | None = None


class EvaluateSpec(Section):
    """suites: names, or names with sizes; engine: what runs them.

    resolve: of every suite that measures in its unit: how many questions are asked, or windows
        read, follows from the difference to show
    """

    resolve: Resolutions | None = None
    suites: tuple[SuiteSpec, ...] = ()
    engine: Literal["torch", "iree"] = "torch"

    @field_validator("suites", mode="before")
    @classmethod
    def _names_are_suites(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        named = [{"suite": item} if isinstance(item, str) else item for item in value]
        wanted = info.data.get("resolve")
        return [
            {**item, "resolve": item.get("resolve") or wanted}
            if wanted and isinstance(item, dict)
            else item
            for item in named
        ]

    @field_validator("suites")
    @classmethod
    def _each_suite_once(cls, value: tuple[SuiteSpec, ...]) -> tuple[SuiteSpec, ...]:
        names = [spec.suite for spec in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            msg = f"names suite '{twice}' twice: a record has one number under a name"
            raise ValueError(msg)
        return value


class BenchSpec(Section):
    """suites: what is timed; prompt and new: tokens; repeats: kept samples of each engine.

    batch: of `prefill` and `decode`: sequences at once, all of them equally long; one number or
        several, each timed for itself
    baseline: 'dense' times the model before compression in turn with it, and says faster or slower;
        'float-cache' the same weights with keys and values as floats
    rows, shapes: of the suite `layers`: tokens at once, and whose layers, the model's own or a
        larger one's in the same formats
    """

    suites: tuple[Literal["prefill", "decode", "memory", "compress", "layers"], ...] = (
        "prefill",
        "decode",
        "memory",
    )
    prompt: PositiveInt = 128
    new: PositiveInt = 32
    repeats: PositiveInt = 5
    batch: tuple[PositiveInt, ...] = (1,)
    baseline: Literal["dense", "float-cache"] | None = None
    rows: tuple[PositiveInt, ...] = (1,)
    shapes: Literal["model", "llama-2-7b", "llama-2-13b", "llama-2-70b", "opt-6.7b"] = "model"

    @field_validator("batch", mode="before")
    @classmethod
    def _a_number_is_a_list_of_one(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else (value,)

    @field_validator("batch")
    @classmethod
    def _each_batch_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            msg = "names no batch; leave it out for batch 1"
            raise ValueError(msg)
        if len(set(value)) < len(value):
            msg = f"{list(value)} names a batch twice"
            raise ValueError(msg)
        return value


class Recipe(Section):
    """A whole run.  What is left out is not done."""

    name: FileName = "unnamed"
    model: ModelSpec
    compress: CompressSpec = CompressSpec()
    calibration: CalibrationSpec | None = None
    lower: LowerSpec | None = None
    evaluate: EvaluateSpec | None = None
    bench: BenchSpec | None = None

    @property
    def engines(self) -> list[str]:
        """What is timed."""
        return ["torch", *(["iree"] if self.lower else [])]


def read(path: Path, overrides: list[str]) -> Recipe:
    """A recipe file with `key.path=value` overrides; its name is the file's unless it gives one."""
    data = sections.read_mapping(path, "recipe", "model")
    for override in overrides:
        apply_override(data, override)
    return parse({"name": path.stem, **data}, str(path))


def parse(data: dict[str, Any], where: str) -> Recipe:
    """Plain data to a recipe; ConfigError lists every wrong key with the nearest right one."""
    return sections.parse(Recipe, data, where)


def without_compression(recipe: Recipe) -> Recipe:
    """The run that a recipe's fidelity and speed-ups are against; rows of a table share it."""
    changes: dict[str, Any] = {"name": "dense", "compress": CompressSpec(), "evaluate": None}
    if recipe.model.dense is not None:
        changes["model"] = ModelSpec(id=recipe.model.dense, dtype=recipe.model.dtype)
    if recipe.calibration:
        changes["calibration"] = recipe.calibration.with_seed(recipe.calibration.seed)
    return recipe.model_copy(update=changes)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `key.path=value`, value in YAML, in place; list items are addressed by number."""
    found = re.fullmatch(r"([A-Za-z0-9_.-]+)=(.*)", override, flags=re.DOTALL)
    if not found:
        msg = (
            f"--set {override}: expected key.path=value, for example --set calibration.samples=16."
        )
        raise ConfigError(msg)
    *parents, last = found[1].split(".")
    here: Any = data
    try:
        for key in parents:
            if isinstance(here, list):
                here = here[int(key)]
            else:
                if here.get(key) is None:
                    here[key] = {}
                here = here[key]
        here[int(last) if isinstance(here, list) else last] = yaml.load(
            found[2], Loader=RecipeLoader
        )
    except RepeatedKeyError as error:
        msg = f"--set {override}: {error}."
        raise ConfigError(msg) from error
    except yaml.YAMLError as error:
        msg = f"--set {override}: the value is not YAML ({' '.join(str(error).split())})."
        raise ConfigError(msg) from error
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        msg = f"--set {override}: there is no such place in the recipe ({error})."
        raise ConfigError(msg) from error
