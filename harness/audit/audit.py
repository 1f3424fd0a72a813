"""One checkpoint, judged from its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trinity.harness.audit import faults as found_in
from trinity.harness.audit.awq import Awq
from trinity.harness.audit.bitsandbytes import BitsAndBytes
from trinity.harness.audit.compressed_tensors import CompressedTensors
from trinity.harness.audit.dense import Dense
from trinity.harness.audit.folder import Folder
from trinity.harness.audit.gguf import Gguf
from trinity.harness.audit.gptq import Gptq
from trinity.harness.audit.layout import Fault, Layout, Matrix
from trinity.methods.errors import ConfigError, UnsupportedError

FOLDERS: Mapping[str, Callable[[Folder], Layout]] = {
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "dense": Dense,
    "gptq": Gptq,
}
EMBEDDINGS = (
    "embed_in",
    "embed_positions",
    "embed_tokens",
    "position_embd",
    "tok_embeddings",
    "token_embd",
    "word_embeddings",
    "wpe",
    "wte",
)
HEADS = ("lm_head", "output", "embed_out")


class Place(StrEnum):
    """Where in a model a matrix is."""

    LAYERS = "layers"
    EMBEDDINGS = "embeddings"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True)
class Audit:
    """What a checkpoint stores.  undecoded: layers whose type is counted and not looked into"""

    path: Path
    layout: str
    claim: str
    matrices: Sequence[Matrix]
    total_bytes: int
    faults: Sequence[Fault]
    undecoded: Sequence[str]

    def at(self, place: Place) -> list[Matrix]:
        """Matrices of one place."""
        return [matrix for matrix in self.matrices if place_of(matrix.name) is place]

    @property
    def left_dense(self) -> list[Matrix]:
        """Layers of blocks that are plain floats."""
        return [matrix for matrix in self.at(Place.LAYERS) if not matrix.quantized]


def audit(path: Path) -> Audit:
    """Read a checkpoint; ConfigError if it is damaged, or in no layout that is read here.

    path: as `where.located` has it
    """
    layout = layout_of(path)
    matrices = layout.matrices()
    faults = [*layout.lost(), *found_in.absent([m.name for m in matrices], layout.blocks)]
    if layout.name not in ("dense", "gguf") and not any(m.quantized for m in matrices):
        faults.append(Fault("the checkpoint", f"claims {layout.claim}, and no layer is quantized"))
    sizes: dict[str, found_in.Size] = {}
    undecoded = []
    for matrix in matrices:
        if matrix.faults:
            faults += [Fault(matrix.name, what) for what in matrix.faults]
            continue
        in_block = place_of(matrix.name) is Place.LAYERS
        try:
            decoded = layout.decode(matrix)
        except ConfigError as error:
            faults.append(Fault(matrix.name, str(error)))
            continue
        if decoded.values is None:
            undecoded.append(matrix.name)
        for name, one in found_in.pieces(matrix.name, decoded):
            size = found_in.size_of(one)
            wrong = found_in.of_contents(one, size, in_block)
            faults += [Fault(name, what) for what in wrong]
            if in_block and not wrong and size is not None:
                sizes[name] = size
    faults += found_in.beside_neighbours(sizes)
    return Audit(path, layout.name, layout.claim, matrices, layout.total_bytes, faults, undecoded)


def layout_of(path: Path) -> Layout:
    """How a checkpoint is stored, told from its configuration and its tensors' names."""
    if path.is_file():
        return Gguf(path)
    folder = Folder(path)
    method = str(folder.section.get("quant_method") or _by_tensors(folder)).lower()
    if method not in FOLDERS:
        ours = " `trinity eval` and `bench` take it." if method == "trinity" else ""
        msg = (
            f"audit {path}: its config.json says it is quantized by {method}, which is not read "
            f"here.{ours} Read: {', '.join(FOLDERS)}, and GGUF files."
        )
        raise UnsupportedError(msg)
    return FOLDERS[method](folder)


def place_of(name: str) -> Place:
    """Where a module is, by its name."""
    last = name.rpartition(".")[2]
    if found_in.numbers(name):
        return Place.LAYERS
    if last in EMBEDDINGS:
        return Place.EMBEDDINGS
    return Place.HEAD if last in HEADS else Place.OTHER


def _by_tensors(folder: Folder) -> str:
    """The layout of a folder whose configuration says nothing of one."""
    for name in folder.ends(".qweight"):  # GPTQ packs the inputs into words, AWQ the outputs
        codes, scales = folder.shape(f"{name}.qweight"), folder.shape(f"{name}.scales")
        return "awq" if codes and scales and codes[-1] != scales[-1] else "gptq"
    if folder.ends(".weight_packed") or folder.ends(".weight_scale"):
        return "compressed-tensors"
    return "bitsandbytes" if folder.ends(".quant_map") else "dense"
