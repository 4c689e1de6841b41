"""What makes two versions of an event the same, and two events one."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pisync_common.limits import DATA_DEPTH
from pisync_receiver.domain.batches import body_of
from pisync_receiver.domain.content import SHARED, body_hash, event_hash, id_key, origin_key
from tests.support.submissions import MINUTE, NOON, event

THOROUGH = settings(max_examples=200, derandomize=True)
UUID = "5c1e0b52-6c2f-4a51-9d51-0e6f0d0b7a01"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**39, 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=3), json_values, max_size=4)


def content(data: str | None) -> bytes:
    return event(1, data=data).content


@THOROUGH
@given(data=json_objects, ascii_only=st.booleans())
def test_key_order_and_white_space_make_no_difference(data: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps(dict(reversed(data.items())), indent=1, ensure_ascii=ascii_only)
    assert content(json.dumps(data)) == content(text)


@THOROUGH
@given(data=json_objects)
@example(data={"x": 10**45})
@example(data={"x": int("7" * 4000)})
def test_a_fraction_beside_it_makes_no_difference(data: dict[str, object]) -> None:
    """A number like 1.0 leads to another way of reading, which must agree with the fast one."""
    whole, fraction = (f'{json.dumps(data)[:-1]}{", " if data else ""}"n":{n}}}' for n in ("1", "1.0"))
    assert content(whole) == content(fraction)


@THOROUGH
@given(one=json_objects, other=json_objects)
@example(one={"x": 10**45}, other={"x": f"integer:{10**45}"})
@example(one={"x": [10**45]}, other={"x": [str(10**45)]})
@example(one={"x": None}, other={"x": False})
def test_other_data_is_another_version(one: dict[str, object], other: dict[str, object]) -> None:
    texts = {json.dumps(_with_whole_numbers(each), sort_keys=True) for each in (one, other)}
    assert (content(json.dumps(one)) == content(json.dumps(other))) == (len(texts) == 1)


def _with_whole_numbers(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_with_whole_numbers(each) for each in value]
    if isinstance(value, dict):
        return {name: _with_whole_numbers(each) for name, each in value.items()}
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("0", "false"),
        ("0", "null"),
        ("1", '"1"'),
        ("9007199254740993", "9007199254740992"),
        ("9007199254740993.0", "9007199254740992"),
        ("1" * 5000, "1" * 4999 + "2"),
        ("1" * 50, f'"integer:{"1" * 50}"'),
        ("1e400", "null"),
        ("1e400", "1e401"),
        ("1e400", "-1e400"),
        ("[1,2]", "[2,1]"),
        ('"a"', '"A"'),
        (r'"\ud800"', r'"\ud801"'),
        ("{}", "[]"),
    ],
)
def test_values_that_differ(one: str, other: str) -> None:
    assert content(f'{{"x":{one}}}') != content(f'{{"x":{other}}}')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.0", "1"),
        ("1e2", "100"),
        ("1E+2", "100.0"),
        ("-0.0", "0"),
        ("-0", "0"),
        ("0.10", "0.1"),
        (r'"\u0065"', '"e"'),
        (r'["\ud800", 1.0]', r'[ "\uD800" , 1 ]'),
        (r'{"a":"\ud800","b":1}', r'{"b":1,"a":"\ud800"}'),
        ("1" * 5000, f" {'1' * 5000} "),
        ("1E400", "1e400"),
    ],
)
def test_values_that_are_the_same(one: str, other: str) -> None:
    assert content(f'{{"x":{one}}}') == content(f'{{"x":{other}}}')


@pytest.mark.parametrize(
    "data",
    [
        f'{{"x":{"1" * 5000}}}',
        f'{{"x":-{"1" * 5000},"y":1.5,"z":"\\ud800"}}',
        f'{{"x":0.{"1" * 5000}}}',
        '{"x":"\ud800"}',
        '{"x":1e999999}',
        '{"x":' + "[" * (DATA_DEPTH - 1) + "]" * (DATA_DEPTH - 1) + "}",
        '{"x":' + "[" * (DATA_DEPTH - 1) + "1.0" + "]" * (DATA_DEPTH - 1) + "}",
    ],
)
def test_strange_data_has_a_hash(data: str) -> None:
    assert len(content(data)) == 16
    assert content(data) != content(None)


@THOROUGH
@given(data=st.none() | json_objects, boot=st.none() | st.tuples(st.just("b"), st.integers(0, 9)))
def test_a_kept_body_is_the_same_version(data: dict[str, object] | None, boot: tuple[str, int] | None) -> None:
    one = event(
        7,
        event_id="key",
        learner_id="s-17",
        recorded_ms=NOON + MINUTE,
        boot=boot,
        data=None if data is None else json.dumps(data),
        origin=("stream-0", 3),
    )
    body = json.loads(body_of(one))
    assert (body["seq"], body["id"], body["origin"]) == (7, "key", {"stream": "stream-0", "seq": 3})
    assert body.get("data") == data
    assert body_hash(body_of(one)) == one.content


@THOROUGH
@given(body=st.text(st.characters(exclude_categories=())) | json_objects.map(json.dumps))
@example(body="[" * 100_000)
@example(body='{"type":' + "[" * 5_000 + "]" * 5_000 + "}")
@example(body='{"type":' + "1" * 5_000 + "}")
@example(body='{"type":NaN}')
@example(body='{"type":"\\ud800","seq":1e400}')
def test_any_body_has_a_hash(body: str) -> None:
    assert len(body_hash(body)) == 16


def test_every_field_of_a_version_counts() -> None:
    base = ("video.watched", "home", "learner", "object", "id", "t1", "t2", "boot", 5)
    versions = {event_hash(*base, data=None), event_hash(*base, data="{}")}
    versions |= {event_hash(*base[:place], "other", *base[place + 1 :], data=None) for place in range(len(base))}
    versions |= {event_hash(*base[:place], None, *base[place + 1 :], data=None) for place in range(len(base))}
    assert len(versions) == 2 + 2 * len(base)


def test_the_same_id_and_content_is_one_event_whenever_it_was_recorded() -> None:
    one = event(1, event_id=UUID, data='{"x":1}')
    other = event(9, event_id=UUID, data='{"x": 1.0}', occurred_ms=NOON + MINUTE, boot=("boot", 5), clock_synced=True)
    assert id_key("a", one) == id_key("b", other)
    assert id_key("a", one)[0].startswith(SHARED)


def test_a_uuid_in_capitals_is_the_same_id() -> None:
    assert id_key("a", event(1, event_id=UUID)) == id_key("b", event(1, event_id=UUID.upper()))


@pytest.mark.parametrize("other", [{"type": "note.taken"}, {"learner_id": "s"}, {"object_id": "o"}, {"data": "{}"}])
def test_the_same_id_with_other_content_is_another_event(other: dict[str, str]) -> None:
    assert id_key("a", event(1, event_id=UUID)) != id_key("a", event(1, event_id=UUID, **other))  # type: ignore[arg-type]


@pytest.mark.parametrize("id", ["key-1", UUID.replace("-", ""), f"{{{UUID}}}", UUID[:-1] + "x", "x" * 36])
def test_any_other_id_belongs_to_its_device(id: str) -> None:
    assert id_key("a", event(1, event_id=id))[0] == "a"
    assert id_key("a", event(1, event_id=id)) != id_key("b", event(1, event_id=id))


def test_an_origin_names_device_stream_seq_and_content() -> None:
    keys = {
        origin_key(*place, each)
        for place in (("a", "s", 1), ("b", "s", 1), ("a", "s1", 1), ("a", "s", 11))
        for each in (b"x", b"y")
    }
    assert len(keys) == 8
