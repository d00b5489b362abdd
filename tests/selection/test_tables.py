"""Numbers for checkpoints from CSV and JSON files."""

import json
from pathlib import Path

import pytest

from streamavg.errors import OptionError
from streamavg.selection.tables import LARGEST_FILE, number_in, read_table, rows_of


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text, name="table"):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(text.encode())
    return name


def numbers(source, *names, column=0):
    """The number of each checkpoint, and the paths that were not used."""
    paths = [Path(name) for name in names]
    assigned = rows_of(read_table(source), paths, paths)
    return (
        {str(path): float(row.cells[column]) for path, row in assigned.rows.items()},
        list(assigned.unused),
    )


class TestHistory:
    """`history.csv`, as Keras' CSVLogger writes it."""

    LINES = "epoch,loss,val_loss\r\n0,0.9,0.8\r\n1,0.7,0.6\r\n2,0.5,0.4\r\n"

    def test_counts_epochs_from_0_where_names_count_from_1(self):
        found, unused = numbers(write(self.LINES), "epoch-3.keras", "epoch-1.keras", column=1)
        assert found == {"epoch-3.keras": 0.4, "epoch-1.keras": 0.8}
        assert unused == []

    @pytest.mark.parametrize("separator", [";", "\t"])
    def test_may_have_other_separators(self, separator):
        table = write(self.LINES.replace(",", separator))
        assert numbers(table, "epoch-2.keras")[0] == {"epoch-2.keras": 0.7}

    def test_may_start_with_a_byte_order_mark_and_have_empty_lines(self):
        table = write("\ufeffepoch,loss\n\n0,0.9\n\n")
        assert numbers(table, "epoch-1.keras")[0] == {"epoch-1.keras": 0.9}

    def test_may_be_an_index_that_pandas_wrote(self):
        table = write(",loss\n0,0.9\n1,0.7\n")
        assert numbers(table, "epoch-2.keras")[0] == {"epoch-2.keras": 0.7}

    def test_may_be_of_a_resumed_run(self):
        table = write("epoch,loss\n10,0.2\n11,0.1\n")
        assert numbers(table, "epoch-11.keras", "epoch-12.keras")[0] == {
            "epoch-11.keras": 0.2,
            "epoch-12.keras": 0.1,
        }

    def test_knows_10_from_100_and_1000(self):
        table = write("epoch,loss\n" + "".join(f"{i},{i + 1}\n" for i in range(1000)))
        names = ["epoch-10.h5", "epoch-100.h5", "epoch-1000.h5", "epoch-1.h5"]
        assert list(numbers(table, *names)[0].values()) == [10, 100, 1000, 1]

    @pytest.mark.parametrize("epoch", [4, 0])
    def test_ends_where_it_ends(self, epoch):
        with pytest.raises(OptionError, match="has the epochs 1 to 3, counted so") as caught:
            numbers(write(self.LINES), f"epoch-{epoch}.keras")
        assert f"epoch-{epoch}.keras: is of epoch {epoch}" in str(caught.value)

    def test_that_starts_at_1_is_refused(self):
        """It may be a run resumed at its second epoch, or a log that counts from 1."""
        with pytest.raises(OptionError, match="start at 1"):
            numbers(write("epoch,loss\n1,0.5\n2,0.4\n"), "epoch-2.keras")

    def test_of_two_runs_in_one_file_is_refused_where_they_overlap(self):
        table = write("epoch,loss\n0,0.9\n1,0.8\n1,0.7\n2,0.6\n")
        assert numbers(table, "epoch-3.keras")[0] == {"epoch-3.keras": 0.6}
        with pytest.raises(OptionError, match=r"line 4: epoch 1 is there twice \(also line 3\)"):
            numbers(table, "epoch-2.keras")

    def test_has_one_row_for_one_checkpoint(self):
        with pytest.raises(OptionError, match=r"b/epoch-1\.keras: is of epoch 1, as a/epoch-1"):
            numbers(write(self.LINES), "a/epoch-1.keras", "b/epoch-1.keras")

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "is empty"),
            ("\n\n", "is empty"),
            ("epoch,loss\n", "holds no numbers"),
            ("epoch\n0\n", "holds no numbers"),
            ("loss,val_loss\n0.5,0.4\n", "has no column 'epoch'"),
            ("epoch,loss\n0,0.5,0.4\n", "line 2: expected 2 fields, found 3"),
            ("epoch,loss\n0,0.5\n1\n", "line 3: expected 2 fields, found 1"),
            ("epoch,loss\n0,0.5\nepoch,loss\n0,0.5\n", "line 3: epoch is 'epoch'"),
            ("epoch,loss\n0.5,0.5\n", "epoch '0.5' is no whole number"),
            ("epoch,loss\n-1,0.5\n", "epoch '-1' is no whole number"),
            ("epoch,loss\nnan,0.5\n", "epoch is nan"),
        ],
    )
    def test_that_is_none_is_refused_with_the_line(self, text, problem):
        with pytest.raises(OptionError, match=r"^table: ") as caught:
            numbers(write(text), "epoch-1.keras")
        assert problem in str(caught.value)


class TestPaths:
    def test_are_in_json(self):
        table = write('{"a.h5": 120, "b.h5": 3e2}')
        assert numbers(table, "b.h5", "a.h5") == ({"a.h5": 120, "b.h5": 300}, [])

    @pytest.mark.parametrize("title", ["path", "file", "Filename", "checkpoint"])
    def test_are_in_csv(self, title):
        table = write(f"{title},samples\na.h5,120\nb.h5,300\n")
        assert numbers(table, "a.h5", "b.h5")[0] == {"a.h5": 120, "b.h5": 300}

    def test_are_in_csv_without_names(self):
        assert numbers(write("a.h5,120\nb.h5,300\n"), "a.h5")[0] == {"a.h5": 120}

    def test_are_in_csv_beside_epochs(self):
        table = write("epoch,path,loss\n0,a.h5,0.5\n0,b.h5,0.4\n")
        assert numbers(table, "a.h5", "b.h5")[0] == {"a.h5": 0.5, "b.h5": 0.4}

    def test_are_in_a_mapping(self):
        assert numbers({Path("a.h5"): 1, "b.h5": 2}, "a.h5", "b.h5")[0] == {"a.h5": 1, "b.h5": 2}

    def test_start_at_the_folder_of_the_file(self):
        table = write('{"a.h5": 1}', "runs/table.json")
        assert numbers(table, "runs/a.h5", "other/a.h5")[0] == {"runs/a.h5": 1}

    def test_start_at_the_current_folder_too(self):
        table = write('{"other/a.h5": 1}', "runs/table.json")
        assert numbers(table, "runs/a.h5", "other/a.h5")[0] == {"other/a.h5": 1}

    def test_may_be_absolute_or_roundabout(self):
        table = write(json.dumps({str(Path("a.h5").absolute()): 1, "./x/../b.h5": 2}))
        assert numbers(table, "a.h5", "b.h5")[0] == {"a.h5": 1, "b.h5": 2}

    def test_may_have_lost_their_folders(self):
        table = write('{"old/place/a.h5": 1, "b.h5": 2}')
        assert numbers(table, "new/a.h5", "new/b.h5")[0] == {"new/a.h5": 1, "new/b.h5": 2}

    def test_that_fit_exactly_come_before_names_alone(self):
        table = write('{"x/a.h5": 1, "run/a.h5": 2}')
        assert numbers(table, "run/a.h5") == ({"run/a.h5": 2}, ["x/a.h5"])

    def test_are_never_parts_of_names(self):
        table = write('{"step-10.h5": 1, "step-1000.h5": 3}')
        assert numbers(table, "step-10.h5", "step-100.h5", "step-1000.h5")[0] == {
            "step-10.h5": 1,
            "step-1000.h5": 3,
        }

    def test_of_other_files_are_told(self):
        assert numbers(write('{"a.h5": 1, "z.h5": 2}'), "a.h5") == ({"a.h5": 1}, ["z.h5"])

    def test_of_another_file_that_exists_do_not_fit_by_name(self):
        write("", "run1/a.h5")
        table = write('{"run1/a.h5": 1}')
        assert numbers(table, "run2/a.h5") == ({}, ["run1/a.h5"])

    @pytest.mark.parametrize(
        ("document", "names", "problem"),
        [
            ({"a.h5": 1}, ["x/a.h5", "y/a.h5"], "'a.h5' may be x/a.h5 or y/a.h5"),
            ({"x/a.h5": 1, "a.h5": 1}, ["x/a.h5", "y/a.h5"], "'a.h5' may be x/a.h5 or y/a.h5"),
            ({"a.h5": 1, "./a.h5": 1}, ["a.h5"], "'a.h5' and './a.h5' are both a.h5"),
            ({"x/a.h5": 1, "y/a.h5": 2}, ["a.h5"], "'x/a.h5' and 'y/a.h5' are both a.h5"),
        ],
    )
    def test_that_fit_more_than_one_are_refused_naming_both(self, document, names, problem):
        with pytest.raises(OptionError, match=r"^table: ") as caught:
            numbers(write(json.dumps(document)), *names)
        assert problem in str(caught.value)

    def test_that_fit_one_in_each_folder_are_refused_naming_both(self):
        table = write('{"a.h5": 1}', "runs/table.json")
        with pytest.raises(OptionError, match=r"'a\.h5' may be runs/a\.h5 or a\.h5"):
            numbers(table, "runs/a.h5", "a.h5")

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("{", "no valid JSON"),
            ("[1, 2]", "expected a JSON object"),
            ("{}", "is empty"),
            ('{"a": 1, "a": 2}', "'a' is there twice"),
            ('{"loss": [0.5, 0.4]}', "holds lists"),
            ("[" * 100_000, "no valid JSON"),
        ],
        ids=["half", "list", "empty", "twice", "history", "deep"],
    )
    def test_in_json_that_is_none_are_refused(self, text, problem):
        with pytest.raises(OptionError, match=r"^table: ") as caught:
            read_table(write(text))
        assert problem in str(caught.value)

    def test_are_the_keys_of_a_mapping(self):
        with pytest.raises(OptionError, match="1 is no path"):
            read_table({1: 0.5})


class TestFiles:
    def test_that_do_not_exist_are_named(self):
        with pytest.raises(OptionError, match=r"^no\.csv: there is no such file"):
            read_table("no.csv")

    def test_that_are_folders_are_refused(self, tmp_path):
        with pytest.raises(OptionError, match="is no file"):
            read_table(tmp_path)

    def test_that_are_not_text_are_refused(self):
        Path("table").write_bytes(b"\x89HDF\r\n\x1a\n\xff")
        with pytest.raises(OptionError, match="no text in UTF-8"):
            read_table("table")

    def test_that_are_too_large_are_not_read(self):
        with Path("table").open("wb") as file:
            file.truncate(LARGEST_FILE + 1)
        with pytest.raises(OptionError, match=r"4,194,305 bytes"):
            read_table("table")


class TestNumbers:
    @pytest.mark.parametrize(("cell", "number"), [("0.5", 0.5), (" 1e-3 ", 1e-3), (7, 7.0)])
    def test_are_read(self, cell, number):
        assert number_in(cell, "here", "loss") == number

    @pytest.mark.parametrize(
        "cell", ["NA", "", "nan", "inf", "0,5", "[1, 2]", None, True, [1], 10**400, float("nan")]
    )
    def test_that_are_none_are_refused(self, cell):
        with pytest.raises(OptionError, match=r"^here: loss is "):
            number_in(cell, "here", "loss")
