"""Plain floats, as transformers saves a model."""

from collections.abc import Sequence

from trinity.harness.audit.folder import FolderLayout
from trinity.harness.audit.layout import Decoded, Matrix


class Dense(FolderLayout):
    """Every matrix is `<module>.weight`, or a stack of experts under a name of its own."""

    name = "dense"

    @property
    def claim(self) -> str:
        """The type that config.json names."""
        config = self.folder.config
        return str(config.get("dtype") or config.get("torch_dtype") or "nothing")

    def matrices(self) -> Sequence[Matrix]:
        """Every matrix."""
        return self.folder.plain()

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one."""
        return self.folder.decode_plain(matrix)
