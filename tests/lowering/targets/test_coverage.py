"""The published table of formats and targets is that of the code."""

from pathlib import Path

from trinity.lowering.targets import coverage


def test_the_page_holds_the_generated_table(project_root: Path) -> None:
    page = (project_root / "docs" / "kernels.md").read_text("utf-8")
    assert coverage.markdown() in page


def test_every_format_has_code_or_is_refused_on_every_target() -> None:
    head, _, *rows = coverage.markdown().splitlines()
    names = [cell.strip() for cell in head.split("|")[2:6]]
    assert len(rows) == len(list(coverage.formats()))
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[2:6]]
        assert set(cells) <= {"kernel", "compiled", "refused"}
        reason = row.rsplit("|", 2)[1].strip()
        with_kernels = [cells[names.index(name)] for name in ("cuda", "llvm-cpu", "vulkan")]
        assert bool(reason) == (set(with_kernels) != {"kernel"})
