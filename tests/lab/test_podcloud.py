"""The pod cloud without a pod: its language, its strictness, its faults, what it tells clients from others."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.lab.podcloud import machines, server
from tests.lab.podcloud.faults import Fault
from tests.lab.podcloud.graphql import GraphQLError, parse, select

GPU = '{"query": "query { gpuTypes(input: {id: \\"NVIDIA L40\\"}) { id memoryInGb securePrice } }"}'


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[server.Server]:
    monkeypatch.setattr(machines, "everyone", list)  # an account without pods; podman is not asked
    api = server.Server(0, "key", [])
    threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield api
    api.shutdown()
    api.server_close()


def ask(cloud: server.Server, body: str = GPU, path: str = "/graphql", key: str = "key") -> tuple[int, Any]:
    url = f"http://127.0.0.1:{cloud.server_address[1]}{path}"
    request = Request(url, body.encode(), {"Authorization": f"Bearer {key}"})
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_document_is_understood_as_the_sdk_writes_it() -> None:
    document = """
    # rent
    mutation Rent {
      podRentInterruptable(
        input: { bidPerGpu: 0.69, gpuCount: 4, startSsh: true,
                 env: [{ key: "A", value: "b \\"c\\"" }], cloudType: SECURE }
      ) { id machine { podHostId } }
    }
    """

    (field,) = parse(document).values()

    assert field.arguments["input"] == {
        "bidPerGpu": 0.69,
        "gpuCount": 4,
        "startSsh": True,
        "env": [{"key": "A", "value": 'b "c"'}],
        "cloudType": "SECURE",
    }
    assert field.below is not None
    assert list(field.below) == ["id", "machine"]


@pytest.mark.parametrize("document", ["query { a", "query { a(b: ) }", "query { a } }", "{ a ! }", ""])
def test_a_broken_document_is_an_error(document: str) -> None:
    with pytest.raises(GraphQLError, match="Syntax Error"):
        parse(document)


def test_only_what_is_selected_is_answered_and_an_unknown_field_is_an_error() -> None:
    assert select([{"a": 1, "b": 2}], parse("{ a }")) == [{"a": 1}]
    with pytest.raises(GraphQLError, match='"c"'):
        select({"a": 1}, parse("{ c }"))


def test_an_offer_has_its_price_and_a_wrong_key_is_refused(cloud: server.Server) -> None:
    assert ask(cloud) == (200, {"data": {"gpuTypes": [{"id": "NVIDIA L40", "memoryInGb": 48, "securePrice": 1.14}]}})
    assert ask(cloud, key="other")[0] == 401


def test_a_gpu_that_is_not_offered_and_a_low_bid_are_refused(cloud: server.Server) -> None:
    for wanted in ('gpuTypeId: "NVIDIA A10"', 'gpuTypeId: "NVIDIA L40", bidPerGpu: 0.5'):
        document = f'mutation {{ podRentInterruptable(input: {{ name: "x", {wanted} }}) {{ id }} }}'
        status, answer = ask(cloud, json.dumps({"query": document}))
        assert (status, bool(answer["errors"])) == (200, True)


@pytest.mark.parametrize(
    ("kind", "status"), [("capacity", 200), ("401", 401), ("403", 200), ("500", 500), ("502", 502)]
)
def test_a_fault_meets_as_many_requests_as_it_was_asked_to(cloud: server.Server, kind: str, status: int) -> None:
    ask(cloud, json.dumps({"fault": {"kind": kind, "op": "gpuTypes", "times": 2, "after": 1}}), "/_control")

    answers = [ask(cloud) for _ in range(4)]

    assert [code for code, _ in answers] == [200, status, status, 200]
    assert ["data" in str(answer) and "1.14" in str(answer) for _, answer in answers] == [True, False, False, True]


def test_a_dropped_answer_and_a_lost_one_end_the_connection(cloud: server.Server) -> None:
    for kind in ("drop", "lost"):
        ask(cloud, json.dumps({"fault": {"kind": kind}}), "/_control")
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            ask(cloud)


def test_a_lost_answer_is_an_operation_that_took_place(cloud: server.Server) -> None:
    ask(cloud, json.dumps({"fault": {"kind": "lost"}}), "/_control")
    document = 'mutation { updateUserSettings(input: { pubKey: "k1" }) { id } }'

    with pytest.raises((urllib.error.URLError, ConnectionError)):
        ask(cloud, json.dumps({"query": document}))

    assert cloud.cloud.public_key == "k1"


def test_an_unknown_kind_or_wish_is_refused(cloud: server.Server) -> None:
    with pytest.raises(ValueError, match="one of capacity"):
        Fault("nonsense")
    assert ask(cloud, '{"nonsense": 1}', "/_control")[0] == 400
