"""Query parameters: read as declared, or refused with a problem that names them and says what is allowed."""

import pytest

from pisync_receiver.errors import Problem
from pisync_receiver.http import params
from pisync_receiver.http.params import Param, Query

NOW = 1_800_000_000_000
LIMIT = params.whole("limit", "how many", default=100, low=1, high=1000)


def read(param: Param, text: str) -> object:
    return Query(params=(param,)).read(text.encode(), NOW)[param.name]


@pytest.mark.parametrize(
    ("param", "text", "value"),
    [
        (LIMIT, "", 100),
        (LIMIT, "limit=1", 1),
        (LIMIT, "limit=1000", 1000),
        (params.flag("failed", ""), "failed=true", True),
        (params.flag("failed", ""), "failed=false", False),
        (params.flag("failed", ""), "", None),
        (params.choice("mode", "", ("a", "b"), default="a"), "mode=b", "b"),
        (params.choice("mode", "", ("a", "b"), default="a"), "", "a"),
        (params.moment("since", ""), "since=1970-01-01T00:00:01Z", 1000),
        (params.moment("since", ""), "since=1970-01-01T01:00:01%2B01:00", 1000),
        (params.moment("since", ""), "since=1970-01-01T01:00:01+01:00", 1000),
        (params.moment("since", ""), "since=7d", NOW - 7 * 86_400_000),
        (params.duration("silent_for", ""), "silent_for=3d", 3 * 86_400_000),
        (params.duration("silent_for", ""), "silent_for=90s", 90_000),
        (params.identifier("device", ""), "device=pi-1", "pi-1"),
        (params.event_type("type", ""), "type=video.watched", "video.watched"),
        (params.object_id("object", ""), "object=math/g5", "math/g5"),
        (params.text("site", ""), "site=S%C3%A3o", "São"),
    ],
)
def test_a_good_value_is_read(param: Param, text: str, value: object) -> None:
    assert read(param, text) == value


@pytest.mark.parametrize(
    ("param", "text", "says"),
    [
        (LIMIT, "limit=0", "from 1 to 1000"),
        (LIMIT, "limit=1001", "from 1 to 1000"),
        (LIMIT, "limit=", "from 1 to 1000"),
        (LIMIT, "limit=-1", "from 1 to 1000"),
        (LIMIT, "limit=1.0", "from 1 to 1000"),
        (LIMIT, "limit=%D9%A1", "from 1 to 1000"),
        (LIMIT, "limit=" + "9" * 5000, "from 1 to 1000"),
        (LIMIT, "limit=1&limit=2", "once"),
        (params.flag("failed", ""), "failed=yes", "true or false"),
        (params.choice("mode", "", ("a", "b"), default="a"), "mode=c", "a, b"),
        (params.moment("since", ""), "since=yesterday", "RFC 3339"),
        (params.moment("since", ""), "since=2026-11-23T10:00:00", "RFC 3339"),
        (params.moment("since", ""), "since=2026-02-30T10:00:00Z", "RFC 3339"),
        (params.duration("silent_for", ""), "silent_for=3", "3d"),
        (params.duration("silent_for", ""), "silent_for=-3d", "3d"),
        (params.identifier("device", ""), "device=a%20b", "A-Z a-z 0-9"),
        (params.event_type("type", ""), "type=Watched", "noun.verb"),
        (params.object_id("object", ""), "object=%00", "control characters"),
        (params.text("site", ""), "site=", "1 to 256"),
    ],
)
def test_a_bad_value_is_400_and_names_the_parameter(param: Param, text: str, says: str) -> None:
    with pytest.raises(Problem) as caught:
        read(param, text)
    assert (caught.value.status, caught.value.problem_code) == (400, "invalid_parameter")
    assert caught.value.detail.startswith(f"{param.name}: ")
    assert says in caught.value.detail


@pytest.mark.parametrize("query", ["limit=%FF", "&".join(f"a{n}=1" for n in range(200))])
def test_a_query_string_that_cannot_be_read_is_400(query: str) -> None:
    with pytest.raises(Problem) as caught:
        read(LIMIT, query)
    assert caught.value.status == 400


@pytest.mark.parametrize(("query", "says"), [("limt=1", "did you mean limit?"), ("xyzzy=1", "known: limit")])
def test_an_unknown_parameter_is_400_and_names_the_nearest(query: str, says: str) -> None:
    with pytest.raises(Problem, match=says.replace("?", r"\?")) as caught:
        read(LIMIT, query)
    assert (caught.value.status, caught.value.problem_code) == (400, "unknown_parameter")
