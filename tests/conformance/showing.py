"""What an engine accepts, every answer can show: hostile bodies through the app's decoders, then every way out."""

import csv
import io
import itertools
import json
from collections.abc import Iterator
from datetime import UTC
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pisync_common.limits import DATA_DEPTH, SEQ_MAX
from pisync_common.times import parse_ms
from pisync_receiver.alerts.notices import Links, notices, parts_of
from pisync_receiver.api import table
from pisync_receiver.app import AppSettings, Receiver
from pisync_receiver.domain import rows
from pisync_receiver.domain.notices import Transition
from pisync_receiver.domain.records import EventFilter, EventRecord
from pisync_receiver.worker.messages import histories, render
from tests.conformance.properties import SHARED_STORE
from tests.conformance.tables import Tables
from tests.support.blocking import BlockingStore
from tests.support.submissions import CRITERIA, HOUR, NOON

_TIMES: Final = {
    *("timestamp", "occurred_at", "recorded_at", "estimated_at", "received_at", "created_at", "expires_at", "ended_at"),
    *("revoked_at", "last_refused", "enrolled_at", "retired_at", "last_contact", "failing_since", "last_sync_at"),
    *("last_success_at", "cloned_since", "first_received_at", "last_received_at", "server_time"),
}
_numbers = itertools.count()


def _object(fields: dict[str, str]) -> str:
    """A JSON object of values that are JSON text; a name may be any text."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


names: Final = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12) | st.sampled_from(
    [
        *("=cmd|' /C calc'!A0", "x;=1+1", "@SUM(1)", "\uff1d1", "-s1", '"quoted", and', ".", "..", "NULL", "{}", "%00"),
        *("e\u0301\u0302", "\u202eabc\u2066", "\U0001f469\U0001f3fd\u200d\U0001f4bb", "\u0646\u0648\u0631", "\ufeff"),
        *("\ufffe", "x" * 128, "\U00010330" * 128, "\u2028", "\\", "\\u0000"),
    ]
)
refused: Final = st.sampled_from(["\ud800", "a\udfffb", "\0", "\r\n", "\t@SUM(1)", "", " ", "x" * 600, "\x7f\x85"])
texts: Final = names | refused
good_moments: Final = st.sampled_from(
    [
        *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.999-23:59", "9999-12-31T23:59:59.999999999Z"),
        *("9999-12-31T23:59:59+23:59", "1970-01-01T00:00:00Z", "2099-12-31T23:59:59Z", "2016-12-31T23:59:60Z"),
        *("2016-12-31T23:59:60.5+23:59", "2026-11-23t08:12:09z", "2026-11-23 08:12:09.123456789-00:00"),
        *("2026-11-23T10:00:00.000Z", "2026-11-23T12:59:59.999+00:00"),
    ]
)
bad_moments: Final = st.sampled_from(
    [
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-11-23", "2026-02-30T10:00:00Z", ""),
        *("\u0662026-11-23T10:00:00Z", "2026-11-23T24:00:00Z", "2026-11-23T10:00:00.\u0661Z"),
    ]
)
moments: Final = good_moments | bad_moments
numbers: Final = st.sampled_from(
    [
        *(
            "0",
            "1",
            "-0",
            "-0.0",
            "5.0",
            "0.1",
            "1e0",
            "1e400",
            "-1E+400",
            "5e-324",
            "1.7976931348623157e308",
            "1e-400",
        ),
        *(str(SEQ_MAX), str(SEQ_MAX + 1), str(2**63), str(2**64), "9" * 5000, "1" + "0" * 400 + ".5", "1e3"),
    ]
)
whole: Final = st.integers(0, SEQ_MAX).map(str) | st.sampled_from([str(SEQ_MAX), "0", "5.0"])
counts: Final = whole | numbers
values: Final = st.one_of(names.map(json.dumps), numbers, st.sampled_from(["null", "true", "[]", "{}"]))
good_datas: Final = st.dictionaries(names, values, max_size=4).map(_object) | st.sampled_from(
    [
        '{"a":' * DATA_DEPTH + "1" + "}" * DATA_DEPTH,
        '{"wide":"' + "\U0001f600" * 16_000 + '"}',
        '{ "a" :\r\n\t1, "a":2}',
        '{"nul":"\\u0000\\\\u0000"}',
        "null",
    ]
)
bad_datas: Final = st.sampled_from(
    [
        '{"a":' * (DATA_DEPTH + 1) + "1" + "}" * (DATA_DEPTH + 1),
        '{"long":"' + "x" * 66_000 + '"}',
        '{"lone":"\\ud800"}',
        '{"number":NaN}',
        "[]",
        "7",
    ]
)
seqs: Final = st.integers(1, 9).map(str) | st.sampled_from([str(SEQ_MAX), str(SEQ_MAX - 1), "2.0", "3"])
boots: Final = st.fixed_dictionaries({"boot_id": st.sampled_from(['"b"', '"c"']), "boottime_ms": whole})


def _events(
    kinds: list[str], texts: st.SearchStrategy[str], moments: st.SearchStrategy[str], datas: st.SearchStrategy[str]
) -> st.SearchStrategy[str]:
    text = texts.map(json.dumps)
    needed = {"seq": seqs, "type": st.sampled_from(kinds), "occurred_at": moments.map(json.dumps)}
    optional = dict.fromkeys(("id", "learner_home", "learner_id", "object_id"), text) | {
        "recorded_at": moments.map(json.dumps),
        "clock_synced": st.sampled_from(["true", "false"]),
        "data": datas,
        "origin": seqs.map(lambda seq: _object({"stream": '"s"', "seq": seq})),
    }
    fields = st.fixed_dictionaries(needed, optional=optional)
    return st.builds(lambda given, boot: _object(given | boot), fields, boots | st.just({}))


good_events: Final = _events(['"note.taken"'], names, good_moments, good_datas)
events: Final = st.one_of(
    *[good_events] * 4, _events(['"note.taken"', '"x"', "7"], texts, moments, good_datas | bad_datas)
)
sents: Final = st.none() | st.builds(lambda at, boot: _object({"at": json.dumps(at)} | boot), moments, boots)
batches: Final = st.builds(
    lambda stream, sent, agent, items: (
        "POST",
        "/api/events",
        {"stream": json.dumps(stream), "events": f"[{','.join(items)}]"}
        | ({} if sent is None else {"sent": sent})
        | ({} if agent is None else {"agent": json.dumps(agent)}),
    ),
    st.sampled_from(["s", "s", "a..", "a@b:+", "x" * 128]),
    sents,
    st.none() | names,
    st.lists(events, max_size=6),
)


def _sync_events(
    moments: st.SearchStrategy[str], counts: st.SearchStrategy[str], codes: list[str]
) -> st.SearchStrategy[tuple[str, str, dict[str, str]]]:
    fields = st.fixed_dictionaries(
        {
            "timestamp": moments.map(json.dumps),
            "total_files_synced": counts,
            "total_errors": counts,
            "internet_speed": st.floats(0, 1e9, allow_nan=False).map(repr) | st.sampled_from(["0", "-0.0", "1e9", "2"]),
        },
        optional={"errors": st.dictionaries(st.sampled_from(codes), counts, max_size=3).map(_object)},
    )
    return fields.map(lambda given: ("POST", "/api/sync-event", given))


good_sync_events: Final = _sync_events(good_moments, whole, ["dns", "tls"])
sync_events: Final = st.one_of(*[good_sync_events] * 3, _sync_events(moments, counts, ["dns", "x"]))
changes: Final = st.builds(
    lambda fields: ("PATCH", "/api/devices/{device_id}", fields),
    st.fixed_dictionaries(
        {},
        optional={
            "site": names.map(json.dumps),
            "label": texts.map(json.dumps),
            "site_since": good_moments.map(json.dumps),
            "retired": st.sampled_from(["true", "false"]),
        },
    ),
)
acts: Final = st.builds(
    lambda path, fields: ("POST", path, fields),
    st.sampled_from(["/api/enrollment-codes", "/api/tokens", "/api/enroll"]),
    st.fixed_dictionaries(
        {"scope": st.sampled_from(['"viewer"', '"device"'])},
        optional={
            "label": names.map(json.dumps),
            "site": names.map(json.dumps),
            "sites": st.lists(texts, min_size=1, max_size=2).map(json.dumps),
            "uses": st.sampled_from(["1", "1000000", "1000001"]),
            "expires_in_s": st.sampled_from(["0", "315360000", "9007199254740991"]),
            "code": texts.map(json.dumps),
        },
    ),
)
bodies: Final = st.lists(st.one_of(batches, batches, sync_events, sync_events, changes, acts), min_size=2, max_size=8)
suffixes: Final = st.sampled_from(["", "..", ".@everyone", "+", ":-", "x" * 100])


class ShowingConformance:
    @settings(max_examples=40, deadline=None, suppress_health_check=SHARED_STORE)
    @given(sent=bodies, suffix=suffixes)
    def test_accepted_body_can_be_shown_everywhere(
        self, store: BlockingStore, sent: list[tuple[str, str, dict[str, str]]], suffix: str
    ) -> None:
        device = f"x{next(_numbers)}{suffix}"
        begun = ("POST", "/api/events", {"stream": '"s"', "events": "[]"})
        store.run(_send_and_show(store, [begun, *sent], device))

    def test_row_beyond_the_rules_can_be_shown(self, store: BlockingStore, tables: Tables) -> None:
        """An older version, or a hand, wrote what no decoder accepts now: it is shown as the nearest, or marked."""
        far, past = 2**62, -(2**62)
        times: dict[str, Any] = {
            "last_contact_ms": far,
            "failing_since_ms": past,
            "last_sync_ms": far,
            "last_failure_ms": far,
        }
        counted: dict[str, Any] = {"consecutive_failures": 5, "total_failures": far, "conflicts": far}
        device = rows.Device(device_id="old", last_errors="{broken", site_history="?", **times, **counted)
        stream = rows.Stream(device_id="old", stream="s", first_ms=past, last_ms=far, highest=far, stored=3, boots="?")
        tables.insert("devices", device)
        tables.insert("streams", stream)
        tables.insert("streams", stream, stream="t", stored=0)
        row = rows.StoredEvent(
            "old", "s", 1, "?", "=1", None, "\u202e", None, None, "then", "now", None, far, True, None, 0, 0, 2, b""
        )
        for number, (data, quality, ms) in enumerate([("{broken", 7, far), ('{"a":NaN}', -1, past), ("[1]", 0, 0)]):
            changes = {"id": 10**9 + number, "seq": number, "data": data, "received_ms": ms, "best_ms": ms}
            tables.insert("events", row, **changes, quality=quality)
        sync_event = rows.StoredSyncEvent("old", 10**9, None, "then", far, far, far, 10**9, "[1]", None, far)
        tables.insert("sync_events", sync_event)
        tables.insert("rejected", rows.Rejected("old", "s", 9, b"", "?", "?", "{broken", past))
        tables.insert("tokens", rows.Token(id=10**9, scope="viewer", token_hash="old", sites="{broken", created_ms=far))
        shown = store.run(_send_and_show(store, [], "old"))
        assert len(shown) == 3
        assert b"broken" in bytes(shown[0].data)


async def _send_and_show(
    store: BlockingStore, sent: list[tuple[str, str, dict[str, str]]], device: str
) -> list[EventRecord]:
    receiver = Receiver.create(store.store, AppSettings(auth=False, cache_ttl_s=0), now_ms=lambda: NOON + HOUR)
    transport = httpx.ASGITransport(receiver.app)
    async with receiver.running(), httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
        for method, path, fields in sent:
            body = _object({"device_id": json.dumps(device)} | fields).encode()
            headers = {"Content-Type": "application/json"}
            answer = await client.request(method, _filled(path, device), content=body, headers=headers)
            assert answer.status_code < 500, (path, body, answer.text)
            _check_json(answer.text)
        for path in _paths(device):
            await _follow(client, path)
        for media in ("application/x-ndjson", "text/csv"):
            answer = await client.get("/api/events", params={"device_id": device}, headers={"Accept": media})
            assert answer.status_code == 200
            _check_export(media, answer.text)
        metrics = await client.get("/metrics")
        assert len(list(text_string_to_metric_families(metrics.text))) > 10
    return await _messages_and_notices(store, device)


def _filled(path: str, device: str) -> str:
    return path.replace("{device_id}", quote(device, safe=""))


def _paths(device: str) -> Iterator[str]:
    """Every route that reads, and the readings of one device."""
    for route in table():
        if route.method == "GET" and "{" not in route.path.replace("{device_id}", "") and route.path != "/docs":
            wanted = {"limit": "1000", "learner_id": "s-17"}
            names = [param.name for param in route.query.params if param.required or param.name == "limit"]
            given = urlencode([(name, wanted[name]) for name in names])
            yield _filled(route.path, device) + (f"?{given}" if given else "")
    yield f"/api/events?limit=2&device_id={quote(device, safe='')}"
    yield f"/api/sync-event/device/{quote(device, safe='')}/sync-history?limit=1"
    for more in ("", "&mode=total", "&mode=total&since=0001-01-01T00:00:00Z"):
        yield f"/api/sync-event/devices/repeated-failures?min_failures=1&limit=1000{more}"


async def _follow(client: httpx.AsyncClient, path: str | None) -> None:
    while path is not None:
        answer = await client.get(path)
        assert answer.status_code in (200, 404), (path, answer.text)
        if answer.headers["content-type"].startswith("application/"):
            _check_json(answer.text)
        path = answer.links["next"]["url"] if "next" in answer.links else None


def _check_json(text: str) -> None:
    """As a strict reader reads it, and with every time as RFC 3339."""
    _check_times(json.loads(text, parse_constant=_no_constant, parse_int=str))


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _check_times(value: object) -> None:
    if isinstance(value, list):
        for each in value:
            _check_times(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name in _TIMES and isinstance(each, str):
                parse_ms(each)
            elif name not in ("data", "event"):  # as it was sent
                _check_times(each)


def _check_export(media: str, text: str) -> None:
    if media == "text/csv":
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        assert {len(row) for row in rows} <= {len(EventRecord.__struct_fields__)}
        return
    for line in text.split("\n")[:-1]:
        _check_json(line)


async def _messages_and_notices(store: BlockingStore, device: str) -> list[EventRecord]:
    shown: list[EventRecord] = []
    cursor: str | None = None
    while cursor is not None or not shown:
        page = await store.store.events(EventFilter(device_id=device), limit=3, cursor=cursor)
        shown += page.rows
        if (cursor := page.next) is None:
            break
    values = {"device": device, "after": -1, "last": 2**63 - 1, "since": -(2**63) + 1, "until": 2**63 - 1, "limit": 999}
    values |= {"occurred_since": values["since"], "occurred_until": values["until"]}
    values |= dict.fromkeys(("stream", "type", "object", "site", "sites"))
    raw = await store.store._rows("events_of_device", **values)
    messages = [message for history in histories(render(raw), max_events=100) for message in history]
    published = [event for message in messages for event in json.loads(message.body, parse_int=str)]
    assert len(published) == len(shown) == len(raw)
    found = await store.store.device(device, criteria=CRITERIA)
    if found is not None:
        (row,) = await store.store._rows("devices_by_id", devices=[device])
        held = rows.Device(**dict(zip(rows.Device.__struct_fields__, row, strict=True)))
        transition = Transition(
            id=1, device_id=device, site=held.site, before="well", state="failing", at_ms=NOON,
            since_ms=held.failing_since_ms, errors=held.last_errors,
        )  # fmt: skip
        parts = parts_of([transition], {})
        assert all(notices(parts, digest=digest, zone=UTC, links=Links()) for digest in (True, False))
    return shown
