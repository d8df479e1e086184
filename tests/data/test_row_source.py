"""Rows of files and of the hub: any row on, streamed, and what cannot be read in one line."""

from __future__ import annotations

import json

from bridge_jax.data import row_source
from tests import errors
from tests.data import demo_rows


def open_files(path) -> row_source.RowSource:
    return row_source.open_any(str(path), f"--source={path}")


def numbers(folder, count: int, group: int = 1000, start: int = 0, name: str = "a.parquet"):
    rows = [dict(problem=f"p{n}", answer="1", solution="s") for n in range(start, start + count)]
    return demo_rows.write(folder / name, "traces", rows, group)


def test_files_are_read_from_any_row_on(tmp_path):
    """Parquet with several row groups, and JSONL, are one source in the order of their names."""
    numbers(tmp_path / "d", 200, group=70)
    rows = [json.dumps(dict(problem=f"p{n}", answer=1)) for n in range(200, 210)]
    (tmp_path / "d" / "b.jsonl").write_text("\n\n".join(rows))
    numbers(tmp_path / "d", 5, start=210, name="c.parquet")
    numbers(tmp_path / "d" / ".cache", 5)
    source = open_files(tmp_path / "d")
    assert source.columns == ("problem", "solution", "answer") and source.total == 215
    for skip in (0, 1, 69, 70, 139, 200, 203, 210, 214, 215, 300):
        found = [row["problem"] for row in source.read(skip, ("problem",))]
        assert found == [f"p{n}" for n in range(skip, 215)]
    assert [file["name"] for file in source.origin["files"]] == [
        "a.parquet",
        "b.jsonl",
        "c.parquet",
    ]
    assert list(source.read(214, ("problem",))) == [{"problem": "p214"}]


def test_a_parquet_is_never_a_whole_table(tmp_path, monkeypatch):
    """Rows come as record batches, whatever the size of a row group."""
    path, sizes, groups = numbers(tmp_path, 1000, group=500), [], []
    from_file = row_source.parquet_rows

    class Watched:
        def __init__(self, table):
            self.table = table

        def __getattr__(self, name):
            return getattr(self.table, name)

        def iter_batches(self, size, row_groups, columns):
            groups.append(row_groups)
            for batch in self.table.iter_batches(size, row_groups, columns):
                sizes.append(batch.num_rows)
                yield batch

    monkeypatch.setattr(
        row_source, "parquet_rows", lambda table, *args: from_file(Watched(table), *args)
    )
    source = open_files(path)
    rows = source.read(0, ("problem",))
    next(rows)
    assert sizes == [row_source.BATCH]
    assert len(list(rows)) == 999
    # nor are row groups read that are skipped
    assert len(list(source.read(500, ("problem",)))) == 500
    assert groups == [[0, 1], [1]]


def test_files_that_cannot_be_read(tmp_path):
    """One line each, with the file and the way out."""
    read = lambda name: row_source.open_any(str(tmp_path / name), f"--source={name}")
    with errors.raises(ValueError, "nothing", ".parquet"):
        read("nothing")
    (tmp_path / "t.csv").write_text("a,b")
    with errors.raises(ValueError, "t.csv", ".jsonl"):
        read("t.csv")
    (tmp_path / "p.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    with errors.raises(ValueError, "p.parquet", "git lfs pull"):
        read("p.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    with errors.raises(ValueError, "empty.jsonl", "no rows"):
        read("empty.jsonl")
    for blank in (b"\n \n\t\r\n", b"\xef\xbb\xbf\n\n", b"   "):
        (tmp_path / "blank.jsonl").write_bytes(blank)
        with errors.raises(ValueError, "blank.jsonl", "no rows"):
            read("blank.jsonl")
    numbers(tmp_path, 0, name="none.parquet")
    with errors.raises(ValueError, "none.parquet", "no rows"):
        read("none.parquet")
    (tmp_path / "list.json").write_text('[{"problem": "a"}]')
    with errors.raises(ValueError, "list.json", "object"):
        read("list.json")


def test_a_bad_line_is_named_when_it_is_reached(tmp_path):
    """The rows before it are read."""
    lines = [json.dumps(dict(problem="a"))] * 200 + ["{"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = open_files(tmp_path / "a.jsonl").read(0, ("problem",))
    assert len([next(rows) for _ in range(200)]) == 200
    with errors.raises(ValueError, "a.jsonl", "line 201"):
        next(rows)


def test_a_split_of_the_hub(tmp_path, monkeypatch):
    """NAME#SPLIT before any other; one that is not there is an error that names those that are."""
    import datasets

    # the library reads a folder of this name as it reads the hub
    (tmp_path / "who" / "what").mkdir(parents=True)
    (tmp_path / "who" / "what" / "train.jsonl").write_text('{"problem": "One?"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(row_source.hub, "look_up", lambda *given: (None, None))
    source = row_source.open_any("who/what#train", "task.test=who/what#train", "test")
    assert list(source.read()) == [{"problem": "One?"}] and source.origin["split"] == "train"
    with errors.raises(ValueError, "task.test=x", "'train'", "test", "as who/what#SPLIT"):
        row_source.open_any("who/what#test", "task.test=x")
    with errors.raises(ValueError, "no such file", "owner/name#SPLIT"):
        row_source.open_any("who/what.jsonl#test", "task.test=x")


def test_a_stream_of_the_hub_that_breaks():
    """The row is named, and that nothing is lost; the error may be of any kind."""

    class Broken:
        def select_columns(self, columns):
            assert columns == ["a"]
            return self

        def skip(self, rows):
            yield from [{"a": 1}, {"a": 2}]
            raise LookupError("the network\nis gone")

    rows = row_source.hub_rows(Broken(), "some/data", 7, ("a",))
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with errors.raises(ValueError, "some/data", "row 9", "the network is gone", "same command"):
        next(rows)


def test_a_file_that_lacks_a_column(tmp_path):
    """Found among others that have it."""
    numbers(tmp_path, 3)
    demo_rows.write(tmp_path / "b.parquet", "limo", [dict(question="a")])
    rows = open_files(tmp_path).read(0, ("problem",))
    with errors.raises(ValueError, "b.parquet", "problem", "question"):
        list(rows)
