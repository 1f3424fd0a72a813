"""Which file or folder an audit reads, told without loading anything."""

from pathlib import Path

from trinity.methods.errors import ConfigError

NEED = "Give a model folder with safetensors, or a .gguf file."


def located(path: Path) -> Path:
    """A folder, or the one GGUF file that it is or holds; ConfigError if there is neither."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        msg = f"audit {path}: is a file, and no .gguf. {NEED}"
        raise ConfigError(msg)
    if not path.is_dir():
        msg = f"audit {path}: there is no such file or folder. {NEED}"
        raise ConfigError(msg)
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")):
        return path
    if len(files) > 1:
        msg = f"audit {path}: holds {len(files)} GGUF files. Name one of them, as {files[0]}."
        raise ConfigError(msg)
    return files[0]
