"""Tables for a terminal, and codes for a keyboard."""

from pisync_receiver.api.enrollment import new_code, normalized
from pisync_receiver.commands.console import table


def test_columns_line_up_and_numbers_stand_to_the_right() -> None:
    rows = [{"device_id": "pibook-1", "total_errors": 5}, {"device_id": "p2", "total_errors": 120}]
    assert table(rows, ("device_id", "total_errors")) == (
        "device id  total errors\npibook-1              5\np2                  120\n"
    )


def test_what_is_not_there_is_a_dash() -> None:
    assert table([{"a": None, "b": {}, "c": []}], ("a", "b", "c", "d")).splitlines()[1].split() == ["-"] * 4


def test_counts_and_switches_are_readable() -> None:
    line = table([{"errors": {"dns": 2, "tls": 1}, "cloned": True}], ("errors", "cloned")).splitlines()[1]
    assert line == "dns=2 tls=1  yes"


def test_no_escape_sequence_reaches_the_terminal() -> None:
    assert "\x1b" not in table([{"site": "\x1b[2Jgone", "errors": {"\x07": 1}}], ("site", "errors"))


def test_a_code_is_four_groups_of_four() -> None:
    groups = new_code().split("-")
    assert [len(group) for group in groups] == [4, 4, 4, 4]
    assert new_code() != new_code()


def test_a_code_may_be_typed_carelessly() -> None:
    code = new_code()
    assert normalized(f" {code.lower().replace('-', ' ')}\n") == normalized(code) == code.replace("-", "")
    assert normalized("oil0-1111-2222-3333") == "0110111122223333"


def test_a_table_is_cut_to_the_width_of_the_terminal() -> None:
    rows = [{"device_id": "pibook-1", "site": "x" * 100, "seq": 7}]
    shown = table(rows, ("device_id", "site", "seq"), width=40)
    assert max(map(len, shown.splitlines())) <= 40
    assert "x…" in shown
    assert "pibook-1" in shown
    assert "x" * 100 in table(rows, ("device_id", "site", "seq"))
