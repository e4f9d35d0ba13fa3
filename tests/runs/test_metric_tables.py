"""What a training writes down."""

import pytest

from vwm.runs.metric_tables import MetricTable, average_update_logs, read_csv_rows


def test_every_so_many_updates_make_a_row_of_their_means() -> None:
    sums: dict[str, tuple[float, int]] = {}
    losses = [1.0, 3.0, 8.0, 2.0, 2.0, 5.0, 7.0]
    rows = [
        average_update_logs(sums, {"loss": loss, "twice": 2 * loss}, n, every=3) for n, loss in enumerate(losses, 1)
    ]
    assert [row for row in rows if row] == [{"loss": 4.0, "twice": 8.0}, {"loss": 3.0, "twice": 6.0}]
    assert rows.index({"loss": 4.0, "twice": 8.0}) == 2
    assert sums == {"loss": (7.0, 1), "twice": (14.0, 1)}  # what a checkpoint keeps of the row to come


def test_reading_leaves_a_table_as_it_is_and_a_line_that_was_cut_off_out(tmp_path) -> None:
    path = tmp_path / "evaluations.csv"
    whole = "step,mean\n100,1.5\n"
    for cut in ("2", "200", "200,", "200,-1", "200,-12.5"):
        path.write_text(whole + cut)
        assert read_csv_rows(path) == [{"step": 100, "mean": 1.5}]
        assert path.read_text() == whole + cut
    assert read_csv_rows(tmp_path / "none.csv") == []


@pytest.mark.parametrize("content", [b"step,mean\n1,\xcf\n", b"step,mean\n1,two\n", b"mean\n1\n", b"step\n1,2\n"])
def test_a_table_that_is_none_is_named(content: bytes, tmp_path) -> None:
    path = tmp_path / "losses.csv"
    path.write_bytes(content)
    for read in (lambda: read_csv_rows(path), lambda: MetricTable(path, 5)):
        with pytest.raises(ValueError, match=r"losses\.csv: is no table of metrics .*: move it away"):
            read()
    assert path.read_bytes() == content


def test_a_number_that_some_updates_lack_is_averaged_over_the_others():
    sums = {}
    rows = [
        average_update_logs(sums, logs, n, every=3) for n, logs in enumerate(({"a": 1.0}, {"b": 2.0}, {"b": 4.0}), 1)
    ]
    assert rows == [None, None, {"a": 1.0, "b": 3.0}] and not sums
