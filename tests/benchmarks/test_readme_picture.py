"""The picture of the README shows the numbers of the committed table."""

import csv

from benchmarks import readme_picture


def test_the_committed_picture_is_that_of_the_committed_table() -> None:
    with readme_picture.TABLE.open(newline="", encoding="utf-8") as stream:
        rows = readme_picture.read(csv.DictReader(stream))
    assert all(set(row) == {"speed", "perplexity"} for row in rows.values())
    picture = readme_picture.ROOT / "docs" / "pictures" / "slim-embedded.svg"
    assert readme_picture.svg(rows) + "\n" == picture.read_text(encoding="utf-8"), (
        "python benchmarks/readme_picture.py > docs/pictures/slim-embedded.svg"
    )
