"""What Prometheus reads."""

import re

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from formats.protos import torchserve_pb2 as pb
from tests.gateway.live import LiveGateway

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


def test_counts_are_what_was_sent(live: LiveGateway, http: httpx.Client, channel: grpc.Channel, png: bytes) -> None:
    predict = channel.unary_unary(
        "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        request_serializer=pb.PredictionsRequest.SerializeToString,
        response_deserializer=pb.PredictionResponse.FromString,
    )
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
