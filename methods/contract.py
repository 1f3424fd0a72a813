"""What a compression method is: the types that methods, plugins and the walker share.

A recipe is a list of steps.  Each step gets the original weight *and* what the steps before it made
of that weight, because the papers need both: SLiM's pruner scores the original weight but masks the
quantized one, and its adapter fits the difference between the two.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight


class MethodConfig(BaseModel):
    """Base of every method's options: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def also_needs(self) -> "Statistic":
        """What these options ask for beyond the method's `needs`."""
        return Statistic.NOTHING

    @property
    def turns_inputs(self) -> bool:
        """Whether a rotation also turns, as the model runs, inputs of what writes the stream."""
        return False

    @property
    def keeps_formats(self) -> bool:
        """Whether a method that tunes gives every weight back in the format it came in."""
        return True


class Statistic(Flag):
    """What the walker collects for a method on every linear layer."""

    NOTHING = 0
    X_NORM = auto()
    X_MEAN_ABS = auto()
    HESSIAN = auto()
    ACTIVATIONS = auto()
    HELD_OUT = auto()
    DRIFT = auto()
    X_MAX_ABS = auto()
    FISHER = auto()
    GRADIENTS = auto()
    X_NORM_CLIPPED = auto()
    X_MAX_ABS_CLIPPED = auto()
    X_MEAN_CLIPPED = auto()


OF_LOSS = Statistic.FISHER | Statistic.GRADIENTS
"""What a pass over the whole model makes, of its loss before compression."""
STATISTICS: Mapping[Statistic, str] = {
    Statistic.X_NORM: "x_norm",
    Statistic.X_MEAN_ABS: "x_mean_abs",
    Statistic.HESSIAN: "H",
    Statistic.ACTIVATIONS: "X",
    Statistic.HELD_OUT: "H_held_out",
    Statistic.DRIFT: "H_drift",
    Statistic.X_MAX_ABS: "x_max_abs",
    Statistic.FISHER: "fisher",
    Statistic.GRADIENTS: "gradients",
    Statistic.X_NORM_CLIPPED: "x_norm_clipped",
    Statistic.X_MAX_ABS_CLIPPED: "x_max_abs_clipped",
    Statistic.X_MEAN_CLIPPED: "X_mean_clipped",
}
"""Where `LayerStats` has what was asked for."""
COSTS: Mapping[Statistic, str] = {
    Statistic.X_NORM: "a number for each input",
    Statistic.X_MEAN_ABS: "a number for each input",
    Statistic.X_MAX_ABS: "a number for each input",
    Statistic.HESSIAN: "a matrix [in, in] for each input of the block",
    Statistic.ACTIVATIONS: "every input of the block at every token, in memory at once",
    Statistic.HELD_OUT: "a second matrix [in, in]",
    Statistic.DRIFT: "a second matrix [in, in], a second run of every block (as it was before "
    "compression) on the calibration text, and its hidden states",
    Statistic.FISHER: "a run of the whole model forwards and backwards before, a block at a time; "
    "on disk, what enters every block and a number for each weight",
    Statistic.GRADIENTS: "a run of the whole model forwards and backwards before, a block at a "
    "time, and of every block once more; on disk, what enters every block and its gradients, and "
    "of one block a number for each weight and sequence",
    Statistic.X_NORM_CLIPPED: "a number for each input, and a search for the largest inputs of "
    "every sequence",
    Statistic.X_MAX_ABS_CLIPPED: "a number for each input, and the same search",
    Statistic.X_MEAN_CLIPPED: "a matrix [seq, in] for each input of the block, and the same search",
}
"""What collecting it takes, in words, beyond running the text through the blocks once."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerStats:
    """Calibration statistics of one layer's input; only what was asked for is there.

    Linears with one input (query, key and value) get the same object, so what depends on the input
    alone, such as a factor of H, is made once for all of them: see `shared`.

    x_norm: [in], float32, sqrt of the mean over sequences of the squared norm over tokens
        (Wanda's `scaler_row`, rooted)
    x_mean_abs: [in], float32, mean over tokens of |x|
    H: [in, in], float32, 2/tokens * X^T X, not damped
    X: [tokens, in], float32
    H_held_out: [in, in], float32, the same as H of every fourth sequence alone, the first included;
        `tokens_held_out` are in it
    H_drift: [in, in], float32, 2/tokens * (X~ - X)^T X, where X~ [tokens, in] is what the model
        before compression gives the layer at the same tokens
    x_max_abs: [in], float32, the largest |x| of all tokens
    x_norm_clipped, x_max_abs_clipped: [in], float32, as `x_norm` and `x_max_abs`, of inputs that
        are `tensors.clipped`, each sequence for itself.  They are clipped as the model makes them,
        before transforms scale them
    X_mean_clipped: [seq, in], float32, mean of the same over sequences, for each position
    fisher: [out, in], float32, mean over sequences of the squared gradient, by this layer's weight,
        of the mean next-token loss of the model before compression; of the layer and not of its
        input, so linears with one input have objects of their own, which share what is `shared`
    gradients: [samples, out, in], float32, the gradients that `fisher` has the mean squares of, one
        for each calibration sequence; of the layer too
    """

    tokens: int = 0
    tokens_held_out: int = 0
    x_norm: Tensor | None = None
    x_mean_abs: Tensor | None = None
    H: Tensor | None = None
    X: Tensor | None = None
    H_held_out: Tensor | None = None
    H_drift: Tensor | None = None
    x_max_abs: Tensor | None = None
    fisher: Tensor | None = None
    gradients: Tensor | None = None
    x_norm_clipped: Tensor | None = None
    x_max_abs_clipped: Tensor | None = None
    X_mean_clipped: Tensor | None = None
    _made: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called once for each key; the result is shared and must not be changed.

        key: names what is made and every option it depends on
        """
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])

    def only(self, needs: Statistic) -> "LayerStats":
        """The same without what is not in `needs`; what is shared stays shared."""
        kept = copy(self)
        for need, name in STATISTICS.items():
            if need not in needs:
                object.__setattr__(kept, name, None)
        return kept

    def with_own(self, fisher: Tensor | None, gradients: Tensor | None) -> "LayerStats":
        """The same with what is a layer's and not its input's; what is shared stays shared.

        fisher: [out, in]   gradients: [samples, out, in]
        """
        made = copy(self)
        object.__setattr__(made, "fisher", fisher)
        object.__setattr__(made, "gradients", gradients)
        return made

    def shares_with(self, other: "LayerStats") -> bool:
        """Whether what is `shared` is the same: of linears with one input."""
        return self._made is other._made

    def forget(self) -> None:
        """Free what `shared` keeps; the walker calls it when it leaves these linears."""
        self._made.clear()

    def __post_init__(self) -> None:
        """Refuse NaN and infinity: a sort would place them somewhere, and a mask hide them."""
        for name in STATISTICS.values():
            values = getattr(self, name)
            if values is not None and not bool(torch.isfinite(values).all()):
                msg = (
                    f"calibration statistics: {name} holds NaN or infinity. The model overflows on "
                    f"the calibration text, or a block before this layer is damaged."
                )
                raise ConfigError(msg)


@dataclass(frozen=True, eq=False)
class Reported:
    """A compressed weight, and what its method has to say about how it was made.

    details: plain numbers and texts, such as a solver's certificate; they go into the layer's
        report in the checkpoint and the record, and nothing reads them
    """

    weight: CompressedWeight
    details: Mapping[str, float | int | str]


C = TypeVar("C", bound=MethodConfig, contravariant=True)


@runtime_checkable
class Method(Protocol[C]):
    """Compresses one linear layer at a time.

    name: registry key   paper: where it is from   config: options   needs: what to collect
    """

    name: str
    paper: str
    config: type[MethodConfig]
    needs: Statistic

    def problem(self, shape: tuple[int, int], config: C) -> str | None:
        """Why a layer [out, in] cannot be compressed with `config`, or None.  Needs no weights."""
        ...

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: C
    ) -> CompressedWeight | Reported:
        """The compressed layer, alone or with details for its report.

        W: [out, in], float32, the original weight, left unchanged
        current: what earlier steps made of it; `Dense(W)` in the first step
        """
        ...


@dataclass(frozen=True, eq=False)
class BlockTask:
    """One transformer block, for methods that look past a single layer.

    weights: original weight of each linear   current: what earlier steps made of it
    stats: statistics of each linear's input
    inputs: block inputs, one [seq, hidden] for each calibration sequence (after the compressed
        blocks)
    forward: (weight of each linear, one input) -> block output [seq, hidden]; differentiable
    """

    weights: Mapping[str, Tensor]
    current: Mapping[str, CompressedWeight]
    stats: Mapping[str, LayerStats]
    inputs: tuple[Tensor, ...]
    forward: Callable[[Mapping[str, Tensor], Tensor], Tensor]


@runtime_checkable
class BlockMethod(Protocol[C]):
    """Compresses all linears of a transformer block together."""

    name: str
    paper: str
    config: type[MethodConfig]
    needs: Statistic

    def problem(self, shape: tuple[int, int], config: C) -> str | None:
        """Why a layer [out, in] cannot be compressed with `config`, or None."""
        ...

    def compress_block(
        self, task: BlockTask, config: C
    ) -> Mapping[str, CompressedWeight | Reported]:
        """The compressed linears, each alone or with details for its report: one for every name of
        `task.weights` and no other; of a linear that is to stay, its `task.current`.
        """
        ...


class _Needing(Protocol):
    """What has statistics to collect."""

    needs: Statistic


def needed(method: _Needing, config: MethodConfig) -> Statistic:
    """Everything that a method asks for with these options."""
    return method.needs | config.also_needs


@dataclass(frozen=True, eq=False)
class ModelTask:
    """A whole model whose blocks are compressed, for methods that tune it as a language model.

    current: compressed weight of every linear of the blocks, in order
    sequences: int64 [samples, seqlen], the token ids to tune on
    loss: (weight of each linear [out, in], ids [seqlen]) -> mean next-token loss, differentiable in
        the weights; everything else of the model is as it was
    original: name of a linear -> its weight before compression, float32 [out, in], in memory of its
        own; read when it is asked for
    """

    current: Mapping[str, CompressedWeight]
    sequences: Tensor
    loss: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    original: Callable[[str], Tensor]


@runtime_checkable
class ModelMethod(Protocol[C]):
    """Tunes all compressed linears of a model together, after the last block."""

    name: str
    paper: str
    config: type[MethodConfig]

    def compress_model(
        self, task: ModelTask, config: C
    ) -> Mapping[str, CompressedWeight | Reported]:
        """The tuned weights, each alone or with details for its report.

        All names are those of `task.current`, and so are the formats unless
        `config.keeps_formats` is False.
        """
        ...


class StoredTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors by name, with what its folder says about them.

    settings: file name -> content, of the folder's `*config.json` and of `trinity.json`; the
        content is JSON of other programs, hence Any.  Empty where there is no folder
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """tensors: may read each when it is asked for."""
        self._tensors = tensors
        self.settings = settings or {}

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, as stored."""
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name; reads none."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._tensors)


@runtime_checkable
class CheckpointSource(Protocol[C]):
    """Reads weights that were compressed elsewhere.

    parts: last words of the names of a layer's tensors, `<layer>.<part>`; a tensor of the file that
        is neither such a part nor a tensor of the model is reported as not mapped

    A source may also have a method `example()`: tensors of a checkpoint that it reads, small, for
    conformance to try it on.
    """

    name: str
    paper: str
    config: type[MethodConfig]
    parts: tuple[str, ...]

    def load(self, tensors: StoredTensors, config: C) -> Mapping[str, CompressedWeight]:
        """The compressed weight of every linear found among a checkpoint's tensors.

        tensors: a mapping of names to tensors; a source that needs no settings may ask for no more
            than `Mapping[str, Tensor]`
        """
        ...
