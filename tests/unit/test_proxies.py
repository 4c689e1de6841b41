"""Which proxy leads to the receiver, from tables of what schools write into the environment."""

import pytest

from pisync_agent.network.proxies import Proxy, proxy_for
from pisync_common.errors import RuleError

PROXY = "http://proxy.example:3128"
NAME, IPV4, IPV6 = "https://pisync.school.example", "https://10.1.2.3:8443", "https://[2001:db8::7]"
CYRILLIC, SHARP_S = "https://пример.рф", "https://straße.example"


@pytest.mark.parametrize(
    ("url", "exceptions"),
    [
        (NAME, "pisync.school.example"),
        (NAME, "PISYNC.School.Example"),
        (NAME, "pisync.school.example."),
        (NAME, "school.example"),
        (NAME, ".school.example"),
        (NAME, "*.school.example"),
        (NAME, "example"),
        (NAME, "*"),
        (NAME, "other.example, school.example"),
        (NAME, "other.example school.example"),
        (NAME, " other.example ,\t school.example \n"),
        (NAME, ",,school.example,,"),
        (NAME, "school.example:443"),
        (NAME, "*:443"),
        (NAME, "https://school.example"),
        ("https://pisync.school.example.", "school.example"),
        ("https://PISYNC.school.example", "school.example"),
        (IPV4, "10.1.2.3"),
        (IPV4, "10.1.2.3:8443"),
        (IPV4, "10.0.0.0/8"),
        (IPV4, "10.1.2.3/8"),
        (IPV4, "10.0.0.0/255.0.0.0"),
        (IPV4, "10.0.0.0/8:8443"),
        (IPV4, "localhost,[::1],fe80::/10,пример.рф,10.0.0.0/8"),
        (IPV6, "2001:db8::7"),
        (IPV6, "[2001:db8::7]"),
        (IPV6, "2001:DB8:0:0::7"),
        (IPV6, "[2001:db8::7]:443"),
        (IPV6, "2001:db8::/32"),
        (IPV6, "[2001:db8::]/32"),
        ("https://[fe80::1%25eth0]", "fe80::/10"),
        ("https://[::ffff:10.1.2.3]", "10.0.0.0/8"),
        (CYRILLIC, "пример.рф"),
        (CYRILLIC, "ПРИМЕР.РФ"),
        (CYRILLIC, "рф"),
        (CYRILLIC, "xn--e1afmkfd.xn--p1ai"),
        ("https://xn--e1afmkfd.xn--p1ai", "пример.рф"),
        (SHARP_S, "straße.example"),
        (SHARP_S, "xn--strae-oqa.example"),
        ("https://xn--strae-oqa.example", "straße.example"),
    ],
)
def test_an_exception_is_reached_directly(url: str, exceptions: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        assert proxy_for(url, {"HTTPS_PROXY": PROXY, name: exceptions}) is None


@pytest.mark.parametrize(
    ("url", "exceptions"),
    [
        (NAME, ""),
        (NAME, " , "),
        (NAME, "ool.example"),
        (NAME, "a.pisync.school.example"),
        (NAME, "pisync.school.example:80"),
        (NAME, "http://school.example"),
        (NAME, "*.*,pi*,.,*.,[],[::1,10.0.0.0/99,fe80::/10,::1,/8,:443,пример.рф,\ud800,a..b"),
        (IPV4, "10.1.2.30"),
        (IPV4, "0.1.2.3"),
        (IPV4, ".3"),
        (IPV4, "10.1.2.3:443"),
        (IPV4, "10.2.0.0/16"),
        (IPV4, "10.1.2.0/33"),
        (IPV4, "010.1.2.3"),
        (IPV4, "::/0"),
        (IPV6, "2001:db8::8"),
        (IPV6, "2001:db9::/32"),
        (IPV6, "0.0.0.0/0"),
        (CYRILLIC, "имер.рф"),
    ],
)
def test_other_exceptions_are_ignored(url: str, exceptions: str) -> None:
    assert proxy_for(url, {"HTTPS_PROXY": PROXY, "NO_PROXY": exceptions}) is not None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_is_reached_directly(host: str) -> None:
    assert proxy_for(f"http://{host}:8080", {"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("environ", "variable", "port"),
    [
        ({}, None, 0),
        ({"HTTPS_PROXY": PROXY}, "HTTPS_PROXY", 3128),
        ({"https_proxy": PROXY}, "https_proxy", 3128),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:2"}, "https_proxy", 1),
        ({"https_proxy": "", "HTTPS_PROXY": PROXY}, None, 0),
        ({"HTTP_PROXY": PROXY}, None, 0),
        ({"ALL_PROXY": PROXY}, "ALL_PROXY", 3128),
        ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "HTTPS_PROXY", 1),
        ({"HTTPS_PROXY": " proxy.example:8080 "}, "HTTPS_PROXY", 8080),
        ({"HTTPS_PROXY": "proxy.example"}, "HTTPS_PROXY", 80),
        ({"HTTPS_PROXY": "https://proxy.example/"}, "HTTPS_PROXY", 443),
        ({"HTTPS_PROXY": "http://[2001:db8::1]:8080"}, "HTTPS_PROXY", 8080),
        ({"HTTPS_PROXY": "http://прокси.рф:1"}, "HTTPS_PROXY", 1),
    ],
)
def test_the_proxy_comes_from_the_environment(environ: dict[str, str], variable: str | None, port: int) -> None:
    proxy = proxy_for(NAME, environ)

    assert (proxy and proxy.variable, proxy.port if proxy else 0) == (variable, port)


def test_plain_http_has_its_own_variable() -> None:
    environ = {"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}
    proxy = proxy_for("http://r.example", environ)

    assert proxy == Proxy(variable="HTTP_PROXY", scheme="http", host="a", port=1)


def test_a_login_is_decoded_and_not_shown() -> None:
    proxy = proxy_for(NAME, {"HTTPS_PROXY": "http://pi%40school:se%3Acret@proxy.example:3128"})

    assert proxy is not None
    assert proxy.login == ("pi@school", "se:cret")
    assert "cret" not in f"{proxy} {proxy!r}"
    assert str(proxy) == "the proxy proxy.example:3128 (from HTTPS_PROXY)"


@pytest.mark.parametrize(
    "value",
    [
        *("http://", "http://:3128", "http://a:0", "http://a:99999", "http://a:x", "http://[::1", "ftp://a", "://a"),
        *("http://user:secret@", "http://a b", "http://a..b/\x00", "socks5://127.0.0.1:1080", "socks5h://a"),
    ],
)
def test_an_unusable_proxy_is_an_error_that_names_the_variable(value: str) -> None:
    for variable in ("https_proxy", "ALL_PROXY"):
        with pytest.raises(RuleError, match=variable) as caught:
            proxy_for(NAME, {variable: value})
        assert "secret" not in str(caught.value)
