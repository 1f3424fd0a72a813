import gzip
import hashlib
import json
from pathlib import Path

import pytest

from tests.hub.server import FakeHub
from trinity.harness.texts import corpora
from trinity.harness.texts.pydoc_text import paragraphs
from trinity.methods.errors import ConfigError, MachineError


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(corpora.DATA_DIR, str(folder))
    return folder


def test_a_local_file_is_read_before_the_hub_is_asked(local: Path) -> None:
    write(local / "wikitext-2-raw" / "test.jsonl.gz", [{"text": ""}, {"text": " = A = \n"}])
    corpus = corpora.load("wikitext2", "test")
    assert corpus.documents == ("", " = A = \n")
    assert corpus.source == "TRINITY_DATA_DIR/wikitext-2-raw/test.jsonl.gz"


def test_the_hash_is_the_same_from_disk_and_from_the_hub(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "one"}, {"text": "zwei"}]
    write(local / "wikitext-2-raw" / "train.jsonl.gz", rows)
    from_disk = corpora.load("wikitext2", "train")
    (local / "wikitext-2-raw" / "train.jsonl.gz").unlink()
    asked: dict[str, object] = {}

    def load_dataset(path: str, **arguments: object) -> dict[str, list[str]]:
        asked.update(arguments, path=path)
        return {"text": ["one", "zwei"]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("trinity.harness.hub.data_sets.commit", lambda dataset: "abc")
    from_hub = corpora.load("wikitext2", "train")
    assert (asked["path"], asked["revision"]) == ("Salesforce/wikitext", "abc")
    assert from_hub.source == "huggingface.co/datasets/Salesforce/wikitext, commit abc"
    assert from_hub.sha256 == from_disk.sha256
    plain = (3).to_bytes(8, "little") + b"one" + (4).to_bytes(8, "little") + b"zwei"
    assert from_hub.sha256 == hashlib.sha256(plain).hexdigest()


def test_moving_a_document_boundary_changes_the_hash() -> None:
    assert corpora.content_hash(["ab", "c"]) != corpora.content_hash(["a", "bc"])


def test_a_missing_data_set_names_both_ways_to_get_it(local: Path) -> None:
    with pytest.raises(
        MachineError, match=r"TRINITY_DATA_DIR/c4/train\.jsonl\.gz.*unset it.*put the file"
    ):
        corpora.load("c4", "train")


def test_a_local_only_data_set_is_not_looked_for_on_the_hub(local: Path) -> None:
    with pytest.raises(MachineError, match=r"c4-sample.*on no hub"):
        corpora.load("c4-sample", "train")


def test_a_data_folder_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(corpora.DATA_DIR, "nowhere/at/all")
    with pytest.raises(MachineError, match="'nowhere/at/all', which is not a folder"):
        corpora.load("wikitext2", "test")


def test_a_dangling_link_is_not_passed_over(local: Path) -> None:
    (local / "c4").mkdir()
    (local / "c4" / "train.jsonl.gz").symlink_to(local / "gone")
    with pytest.raises(ConfigError, match=r"c4/train\.jsonl\.gz: is a link to .*gone"):
        corpora.at_hand("c4", "train")


def test_a_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(corpora.DATA_DIR, "~/texts")
    write(tmp_path / "texts" / "c4" / "train.jsonl.gz", [{"text": "here"}])
    assert corpora.load("c4", "train").documents == ("here",)


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"'wikitext'.*Did you mean wikitext2"):
        corpora.load("wikitext", "test")


def test_an_unknown_split_gets_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no split 'valid'.*Did you mean validation"):
        corpora.load("wikitext2", "valid")


def test_a_damaged_file_is_named(local: Path) -> None:
    path = local / "c4-sample" / "c4_sample.jsonl.gz"
    write(path, [{"text": "x" * 1000}])
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConfigError, match=r"c4_sample\.jsonl\.gz: is no whole gzip file"):
        corpora.load("c4-sample", "train")


def test_a_row_without_its_text_is_named(local: Path) -> None:
    write(local / "c4-sample" / "c4_sample.jsonl.gz", [{"text": "fine"}, {"txt": "not"}])
    with pytest.raises(ConfigError, match="line 2: expected an object with text under 'text'"):
        corpora.load("c4-sample", "train")


def test_at_hand_says_what_is_missing_and_pydoc_never_is(local: Path) -> None:
    assert corpora.at_hand("pydoc", "test") is None
    missing = corpora.at_hand("wikitext2", "test")
    assert missing is not None
    assert "TRINITY_DATA_DIR/wikitext-2-raw/test.jsonl.gz" in missing
    write(local / "wikitext-2-raw" / "test.jsonl.gz", [{"text": "here"}])
    assert corpora.at_hand("wikitext2", "test") is None


def test_the_two_parts_of_pydoc_share_no_paragraph_longer_than_a_heading() -> None:
    train, test = (
        {
            " ".join(p.split())
            for text in corpora.load("pydoc", split).documents
            for p in paragraphs(text)
        }
        for split in corpora.PYDOC_SPLITS
    )
    assert {p for p in train & test if len(p) >= 80} == set()


@pytest.mark.parametrize("split", corpora.PYDOC_SPLITS)
def test_pydoc_says_nothing_twice(split: str) -> None:
    said = [
        " ".join(p.split())
        for text in corpora.load("pydoc", split).documents
        for p in paragraphs(text)
    ]
    assert len(said) == len(set(said))


def test_pydoc_holds_out_about_a_third_of_its_text() -> None:
    train, test = (
        sum(map(len, corpora.load("pydoc", split).documents)) for split in corpora.PYDOC_SPLITS
    )
    assert 0.2 < test / (train + test) < 0.45


def test_pydoc_names_the_python_that_carries_it() -> None:
    assert "pydoc_data.topics of Python 3." in corpora.load("pydoc", "train").source


def test_the_real_wikitext_has_the_rows_of_the_hub(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(corpora.DATA_DIR, str(data_dir))
    if corpora.at_hand("wikitext2", "test"):
        pytest.skip("missing: wikitext-2-raw/test.jsonl.gz in the local data")
    corpus = corpora.load("wikitext2", "test")
    assert len(corpus.documents) == 4358
    # A row is a line of wiki.test.raw, a blank one (" \n" there) an empty string: with that undone,
    # the text has the published sha256 of the file.
    raw = "".join(row or " \n" for row in corpus.documents)
    known = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
    assert hashlib.sha256(raw.encode()).hexdigest() == known


def test_a_text_that_a_mirror_lacks_may_be_put_into_a_folder(
    hub: FakeHub,
) -> None:
    del hub.repositories["datasets", "allenai/c4"]
    with pytest.raises(MachineError, match=r"no such data set .* Or put the file there"):
        corpora.load("c4", "train")


def test_a_users_own_files_are_texts(tmp_path: Path) -> None:
    plain, lines = tmp_path / "book.txt", tmp_path / "notes.jsonl.gz"
    plain.write_text("one\n\ntwo", encoding="utf-8")
    write(lines, [{"text": "one"}, {"text": "two"}])
    book, notes = (corpora.load(str(path), "train") for path in (plain, lines))
    assert (book.documents, book.source) == (("one\n\ntwo",), "book.txt")
    assert notes.documents == ("one", "two")
    assert notes.sha256 == corpora.content_hash(["one", "two"])
    assert corpora.at_hand(str(plain), "train") is None


def test_a_users_own_file_that_is_no_text_is_one_paragraph(tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.txt", tmp_path / "empty.txt"
    bad.write_bytes(b"ab\xff")
    empty.touch()
    cases = {
        (str(bad), "train"): r"is not UTF-8 \(byte 2\)",
        (str(empty), "train"): "is empty",
        (str(tmp_path / "absent.txt"), "train"): "there is no such file",
        (str(bad), "test"): "whose only split is 'train'",
    }
    for asked, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            corpora.load(*asked)
