"""What Prometheus reads."""

import re
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from formats.protos import torchserve_pb2 as pb
from tests.gateway.live import LiveGateway

KINDS = ("sum", "count")
CALLED = {("model", "tiny"), ("version", "2"), ("mode", "predict")}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(live: LiveGateway) -> Samples:
    text = httpx.get(f"{live.admin_url}/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count(samples: Samples, protocol: str, endpoint: str, code: str) -> float:
    labels = (("code", code), ("endpoint", endpoint), ("protocol", protocol))
    return samples.get(("penstock_request_seconds_count", labels), 0.0)


def stages(samples: Samples, kind: str) -> dict[str, float]:
    """`penstock_stage_seconds` of what `predict` calls: its `sum` or `count` by stage."""
    return {
        dict(labels)["stage"]: value
        for (name, labels), value in samples.items()
        if name == f"penstock_stage_seconds_{kind}" and set(labels) > CALLED
    }


@pytest.fixture
def predict(channel: grpc.Channel) -> Any:
    """TorchServe's Predictions over gRPC."""
    return channel.unary_unary(
        "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        request_serializer=pb.PredictionsRequest.SerializeToString,
        response_deserializer=pb.PredictionResponse.FromString,
    )


def test_counts_are_what_was_sent(live: LiveGateway, http: httpx.Client, predict: Any, png: bytes) -> None:
    before = scrape(live)

    for _ in range(7):
        http.post("/invocations", content=png, headers={"content-type": "image/png"})
        predict(pb.PredictionsRequest(model_name="tiny", input={"data": png}), timeout=60)
    for _ in range(3):
        http.post("/predictions/tiny", content=b"x", headers={"content-type": "text/plain"})
    http.post("/invocations", content=bytes(1_048_577))

    after = scrape(live)
    for key, growth in {
        ("container", "tiny", "200"): 7,
        ("torchserve-grpc", "tiny", "OK"): 7,
        ("torchserve", "tiny", "415"): 3,
        ("container", "", "413"): 1,
    }.items():
        assert count(after, *key) - count(before, *key) == growth, key
    batches = ("model", "tiny"), ("mode", "predict"), ("pool", "cpu"), ("version", "2")
    size = ("penstock_batch_size_sum", tuple(sorted(batches)))
    assert after[size] - before.get(size, 0) == 17


def test_the_split_of_every_prediction_is_kept(live: LiveGateway, predict: Any, png: bytes) -> None:
    request = pb.PredictionsRequest(model_name="tiny", input={"data": png})
    predict(request, timeout=60)
    before = scrape(live)

    calls = [predict.future(request, timeout=60) for _ in range(20)]
    for call in calls:
        call.result()

    after = scrape(live)
    seconds, counts = ({k: v - stages(before, kind)[k] for k, v in stages(after, kind).items()} for kind in KINDS)
    labels = (("code", "OK"), ("endpoint", "tiny"), ("protocol", "torchserve-grpc"))
    whole = after["penstock_request_seconds_sum", labels] - before["penstock_request_seconds_sum", labels]
    assert (counts["gateway"], counts["queue"]) == (20, 20)
    assert 1 <= counts["batch"] == counts["pre"] == counts["graph"] == counts["post"] == counts["hop"] <= 20
    assert 0 < seconds["gateway"] + seconds["queue"] < whole
    inside = sum(seconds[stage] for stage in ("pre", "graph", "post", "hop"))
    assert seconds["batch"] == pytest.approx(inside, abs=1e-6)


def test_the_split_is_kept_of_what_comes_over_http_too(live: LiveGateway, http: httpx.Client, png: bytes) -> None:
    before = stages(scrape(live), "count")

    for _ in range(600):  # more than are put aside before they are sorted
        http.post("/invocations", content=png, headers={"content-type": "image/png"})

    after = stages(scrape(live), "count")
    assert [after[stage] - before.get(stage, 0) for stage in ("gateway", "queue", "batch")] == [600, 600, 600]


def test_what_reaches_no_backend_has_no_stages(live: LiveGateway, predict: Any) -> None:
    before = scrape(live)

    with pytest.raises(grpc.RpcError):
        predict(pb.PredictionsRequest(model_name="tiny"), timeout=60)

    assert stages(scrape(live), "count") == stages(before, "count")


def test_names_that_clients_make_up_become_no_labels(live: LiveGateway, http: httpx.Client) -> None:
    http.post("/invocations", content=b"x")
    keys = set(scrape(live))

    for number in range(20):
        http.post(f"/endpoints/made-up-{number}/invocations", content=b"x")
        http.post(f"/predictions/made-up-{number}/{number}", content=b"x")
        http.post(f"/v2/models/made-up-{number}/infer", content=b"{}")
        http.post("/invocations", content=b"x", headers={"x-amzn-sagemaker-target-variant": f"made-up-{number}"})
        http.get(f"/made-up-{number}")

    new = set(scrape(live)) - keys
    assert not re.search("made-up", str(new))
    assert len({labels for name, labels in new if name == "penstock_request_seconds_count"}) <= 4


def test_gauges_tell_the_state(live: LiveGateway) -> None:
    samples = scrape(live)

    tiny = (("mode", "predict"), ("model", "tiny"), ("pool", "cpu"), ("version", "2"))
    assert samples["penstock_model_ready", tiny] == 1
    assert samples["penstock_pool_healthy", (("pool", "cpu"),)] == 1
    assert samples["penstock_pool_capacity", (("pool", "cpu"),)] >= 1
    assert samples["penstock_queue_depth", tiny] == 0


def test_histograms_are_cumulative_and_end_at_the_count(live: LiveGateway, http: httpx.Client) -> None:
    http.post("/invocations", content=b"x")
    samples = scrape(live)

    labels = (("code", "415"), ("endpoint", "tiny"), ("protocol", "container"))
    buckets = [
        (float(dict(found)["le"]), value)
        for (name, found), value in samples.items()
        if name == "penstock_request_seconds_bucket" and set(labels) < set(found)
    ]
    values = [value for _, value in sorted(buckets)]
    assert values == sorted(values)
    assert values[-1] == samples["penstock_request_seconds_count", labels] > 0
    assert samples["penstock_request_seconds_sum", labels] > 0
