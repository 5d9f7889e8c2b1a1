"""Where requests may go: names resolved by a server of our own, and a recorder in place of the network."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import httpx
import pytest

from actors.config import HttpScorerConfig
from actors.scoring import checked_transport
from actors.scoring.checked_transport import Address, CheckedTransport, may_be_asked
from actors.scoring.http_scorer import HttpScorer
from cluster.errors import ConfigError
from cluster.types import Score, Trajectory

PUBLIC = "93.184.216.34"


class Network(httpx.BaseTransport):
    """Records where requests go. `unreachable`: addresses that refuse the connection."""

    def __init__(self, *unreachable: str) -> None:
        self.requests: list[httpx.Request] = []
        self._unreachable = unreachable

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.host in self._unreachable:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, stream=httpx.ByteStream(b'{"scores": [1.0]}'))

    @property
    def hosts(self) -> list[str]:
        return [request.url.host for request in self.requests]


class NameServer:
    """Answers with the next list of addresses, and the last one for ever after."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.num_asked = 0

    def __call__(self, host: str, port: int) -> list[Address]:
        self.num_asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [ip_address(address) for address in answer]


def judge(names: NameServer, network: Network, *allowed: str, url: str = "https://judge.example.com/score") -> HttpScorer:
    transport = CheckedTransport([ip_network(each) for each in allowed], resolve=names, transport=network)
    return HttpScorer(HttpScorerConfig.model_validate({"url": url, "allowed_hosts": ["judge.example.com"]}), transport=transport)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "fe80::1",
        "fd00::1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",  # 127.0.0.1 behind a translator
        "2002:a00:1::",  # 10.0.0.1 in a tunnel
        "224.0.0.1",
    ],
)
def test_a_name_that_leads_inside_is_refused(judged: Callable[..., Trajectory], address: str) -> None:
    for answer in ([address], [PUBLIC, address]):
        network = Network()
        with pytest.raises(ConfigError, match=r"judge.example.com leads to .*not a public address.*allowed_networks"):
            judge(NameServer(answer), network).score([judged("x")])
        assert network.requests == []


def test_a_public_name_is_connected_to_by_its_address_and_keeps_its_certificate(judged: Callable[..., Trajectory]) -> None:
    network = Network()
    assert judge(NameServer([PUBLIC]), network).score([judged("x")]) == [Score(value=1.0)]
    assert network.hosts == [PUBLIC]
    assert network.requests[0].headers["Host"] == "judge.example.com"
    assert network.requests[0].extensions["sni_hostname"] == "judge.example.com"


def test_a_name_that_changes_after_the_check_changes_nothing(judged: Callable[..., Trajectory]) -> None:
    names, network = NameServer([PUBLIC], ["127.0.0.1"]), Network()
    scorer = judge(names, network)
    assert scorer.score([judged("x")]) == [Score(value=1.0)]
    assert (names.num_asked, network.hosts) == (1, [PUBLIC])  # the address that was checked, not the name once more
    with pytest.raises(ConfigError, match="leads to 127.0.0.1"):
        scorer.score([judged("x")])
    assert network.hosts == [PUBLIC]


def test_the_next_address_is_tried_where_one_refuses(judged: Callable[..., Trajectory]) -> None:
    network = Network("2606:2800:220:1::1")
    assert judge(NameServer(["2606:2800:220:1::1", PUBLIC]), network).score([judged("x")]) == [Score(value=1.0)]
    assert network.hosts == ["2606:2800:220:1::1", PUBLIC]


def test_networks_that_are_allowed_may_be_asked(judged: Callable[..., Trajectory]) -> None:
    network = Network()
    assert judge(NameServer(["10.1.2.3"]), network, "10.0.0.0/8").score([judged("x")]) == [Score(value=1.0)]
    with pytest.raises(ConfigError, match=r"leads to 11\.0\.0\.1|leads to 172\.16\.0\.1"):
        judge(NameServer(["172.16.0.1"]), network, "10.0.0.0/8").score([judged("x")])
    assert may_be_asked(ip_address("::ffff:10.0.0.1"), [ip_network("10.0.0.0/8")])


def test_a_name_nobody_knows_is_a_failure_that_may_pass(judged: Callable[..., Trajectory]) -> None:
    def unknown(host: str, port: int) -> list[Address]:
        raise OSError("no such name")

    with pytest.raises(httpx.ConnectError, match=r"judge.example.com cannot be resolved: no such name"):
        CheckedTransport([], resolve=unknown, transport=Network()).handle_request(
            httpx.Request("POST", "http://judge.example.com/")
        )


@pytest.mark.parametrize("settings", [{}, {"allowed_networks": ["10.0.0.0/8"]}])
def test_settings_say_what_may_be_asked(
    judged: Callable[..., Trajectory], monkeypatch: pytest.MonkeyPatch, settings: dict[str, list[str]]
) -> None:
    monkeypatch.setattr(checked_transport, "resolved", NameServer(["127.0.0.1"]))
    by_name = {"url": "http://judge.example.com:1/", "allowed_hosts": ["judge.example.com"], "max_retries": 0}
    with pytest.raises(ConfigError, match="leads to 127.0.0.1"):
        HttpScorer(HttpScorerConfig.model_validate({**by_name, **settings})).score([judged("x")])
    for allowed in ({**by_name, "allowed_networks": ["127.0.0.0/8"]}, {"url": "http://localhost:1/", "max_retries": 0}):
        (unscored,) = HttpScorer(HttpScorerConfig.model_validate(allowed)).score([judged("x")])
        assert "ConnectError" in str(unscored)  # it was asked, and nobody listens there


@pytest.mark.parametrize(
    "url", ["http://2852039166/", "http://0xa9fea9fe/", "http://169.254.169.254/", "http://[::ffff:a9fe:a9fe]/"]
)
def test_an_address_in_any_spelling_is_refused_even_as_an_allowed_host(judged: Callable[..., Trajectory], url: str) -> None:
    hosts = ["169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:a9fe:a9fe]"]
    network = Network()
    scorer = HttpScorer(
        HttpScorerConfig.model_validate({"url": url, "allowed_hosts": hosts}), transport=CheckedTransport([], transport=network)
    )
    with pytest.raises(ConfigError, match="not a public address"):
        scorer.score([judged("x")])
    assert network.requests == []
