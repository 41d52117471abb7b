"""From a name to a variant and on to a pool."""

import random
from collections import Counter

import pytest

from formats.envelope import Outcome, Prediction
from formats.errors import InvalidRequest, NotFound, NotReady
from gateway.batcher import Batcher
from gateway.pool import Pool
from gateway.router import Deployment, Endpoint, Residence, Router, Variant
from gateway.settings import PoolSettings
from model_store.manifest import Batching, Manifest
from model_store.store import Bundle
from tests.bundles import write_tiny_classifier
from tests.gateway.observed import Observed
from tests.gateway.test_pool import ToldBackend


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    found = Bundle.open(write_tiny_classifier(tmp_path_factory.mktemp("tiny") / "bundle")).manifest
    return found.model_copy(update={"name": "tiny", "version": "1"})


def pool(name: str, *, healthy: bool = True) -> Pool:
    made = Pool(name, PoolSettings(device="cpu"), ToldBackend(lambda _: None), lambda: 0.0)
    made.healthy = healthy
    return made


def residence(where: Pool, state: str = "ready") -> Residence:
    batcher = Batcher(
        where,
        clock=lambda: 0.0,
        limits=Batching(max_batch_size=1),
        max_queue=9,
        observer=Observed(),
    )
    return Residence(where, state, "why not" if state == "failed" else "", {"predict": batcher})  # type: ignore[arg-type]


def deployment(manifest: Manifest, *residences: Residence) -> Deployment:
    return Deployment(manifest, "predict", residences, lambda woken: setattr(woken, "state", "loading"))


def shares(endpoint: Endpoint, count: int) -> Counter[str]:
    random.seed(5)
    return Counter(endpoint.pick().name for _ in range(count))


def test_variants_share_the_traffic_by_weight(manifest: Manifest) -> None:
    """10 000 picks at a share of 3/4: four standard deviations are 173."""
    same = deployment(manifest)
    endpoint = Endpoint("e", [Variant("a", same, 3.0), Variant("b", same, 1.0), Variant("c", same, 0.0)])

    counts = shares(endpoint, 10_000)

    assert abs(counts["a"] - 7500) < 173
    assert counts["c"] == 0


def test_a_variant_of_weight_zero_is_reached_by_name(manifest: Manifest) -> None:
    endpoint = Endpoint("e", [Variant("a", deployment(manifest), 1.0), Variant("b", deployment(manifest), 0.0)])

    assert endpoint.pick("b").name == "b"


def test_an_endpoint_of_weights_zero_asks_for_a_name(manifest: Manifest) -> None:
    endpoint = Endpoint("e", [Variant(name, deployment(manifest), 0.0) for name in "ab"])

    with pytest.raises(InvalidRequest, match="weight 0"):
        endpoint.pick()


def test_an_unknown_variant_is_refused_with_the_known_ones(manifest: Manifest) -> None:
    with pytest.raises(InvalidRequest, match="it has: a"):
        Endpoint("e", [Variant("a", deployment(manifest), 1.0)]).pick("z")


def router(manifest: Manifest, *names: str, default: str = "") -> Router:
    made = Router(default)
    same = deployment(manifest)
    made.endpoints = {name: Endpoint(name, [Variant("v", same, 1.0)]) for name in names}
    made.deployments = {("tiny", "1", "predict"): same, ("tiny", "1", ""): same}
    return made


def test_the_default_endpoint_is_the_only_one(manifest: Manifest) -> None:
    assert router(manifest, "a").default_endpoint().name == "a"


def test_the_default_endpoint_of_several_is_the_configured_one(manifest: Manifest) -> None:
    assert router(manifest, "a", "b", default="b").default_endpoint().name == "b"


def test_several_endpoints_without_a_default_are_a_bad_request(manifest: Manifest) -> None:
    with pytest.raises(InvalidRequest, match="a, b"):
        router(manifest, "a", "b").default_endpoint()


def test_no_endpoint_at_all_is_not_found(manifest: Manifest) -> None:
    with pytest.raises(NotFound, match="no model is published"):
        router(manifest).default_endpoint()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (("none", "", ""), "none"),
        (("none", "1", ""), "Model not found: none"),
        (("tiny", "7", ""), "it has: 1"),
        (("tiny", "1", "explain"), "no mode 'explain'"),
    ],
)
def test_the_unknown_is_not_found_and_named(manifest: Manifest, asked: tuple[str, str, str], text: str) -> None:
    with pytest.raises(NotFound, match=text):
        router(manifest, "tiny").deployment(*asked)


def test_a_damaged_version_is_not_ready_and_says_why(manifest: Manifest) -> None:
    made = router(manifest, "tiny")
    made.refused = {("tiny", "2"): "manifest.json was altered", ("other", "1"): "manifest.json is missing"}

    with pytest.raises(NotReady, match="altered"):
        made.deployment("tiny", "2")
    with pytest.raises(NotReady, match="missing"):
        made.endpoint("other")
    assert made.deployment("tiny").manifest.version == "1"


def test_the_first_healthy_pool_of_the_placement_answers(manifest: Manifest) -> None:
    first, second = residence(pool("a", healthy=False)), residence(pool("b"))

    assert deployment(manifest, first, second).choose() is second
    first.pool.healthy = True
    assert deployment(manifest, first, second).choose() is first


def test_a_pool_where_the_model_failed_is_passed_over(manifest: Manifest) -> None:
    first, second = residence(pool("a"), "failed"), residence(pool("b"))

    assert deployment(manifest, first, second).choose() is second


def test_a_cold_residence_is_woken_by_its_first_prediction(manifest: Manifest) -> None:
    cold = residence(pool("a"), "cold")
    made = deployment(manifest, cold)
    assert not made.ready

    made.submit(Prediction("tiny", "1"), lambda *_: None)

    assert (cold.state, len(cold.batchers["predict"])) == ("loading", 1)


def test_a_model_that_failed_everywhere_answers_with_the_reason(manifest: Manifest) -> None:
    said: list[Outcome] = []

    deployment(manifest, residence(pool("a"), "failed")).submit(
        Prediction("tiny", "1"), lambda outcome, _: said.append(outcome)
    )

    assert (said[0].error_code, said[0].error_message.endswith("why not")) == ("NotReady", True)
