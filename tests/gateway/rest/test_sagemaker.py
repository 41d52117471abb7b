"""SageMaker runtime and hosting container (hosting contract, sections 2 and 3)."""

import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from botocore.exceptions import ClientError

from tests.bundles import tiny_answer
from tests.gateway.live import LiveGateway

Array = np.ndarray[Any, np.dtype[Any]]


def refusal(sagemaker: Any, **arguments: Any) -> dict[str, Any]:
    with pytest.raises(ClientError) as caught:
        sagemaker.invoke_endpoint(**{"EndpointName": "tiny", "ContentType": "image/png", **arguments})
    answer: dict[str, Any] = dict(caught.value.response)
    answer["code"], answer["status"] = answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]
    return answer


def test_boto3_gets_the_right_probabilities(sagemaker: Any, png: bytes, image: Array) -> None:
    answer = sagemaker.invoke_endpoint(EndpointName="tiny", ContentType="image/png", Body=png)

    probabilities = httpx.Response(200, content=answer["Body"].read()).json()
    np.testing.assert_allclose(probabilities, tiny_answer(image, 4), atol=1e-5)
    assert answer["ContentType"] == "application/json"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ResponseMetadata"]["RequestId"]


def test_curl_gets_the_right_probabilities(live: LiveGateway, png: bytes, image: Array, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png)

    said = subprocess.run(
        ["curl", "-sSf", "-H", "Content-Type: image/png", "--data-binary", "@picture.png", f"{live.url}/invocations"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )

    np.testing.assert_allclose(httpx.Response(200, content=said.stdout).json(), tiny_answer(image, 4), atol=1e-5)


def test_accept_chooses_json_lines(sagemaker: Any, png: bytes, image: Array) -> None:
    answer = sagemaker.invoke_endpoint(
        EndpointName="tiny", ContentType="image/png", Accept="application/jsonlines", Body=png
    )

    line = answer["Body"].read()
    assert answer["ContentType"] == "application/jsonlines"
    assert line.endswith(b"\n")
    np.testing.assert_allclose(httpx.Response(200, content=line).json()["prediction"], tiny_answer(image, 4), atol=1e-5)


def test_a_wrong_content_type_is_a_model_error_415(sagemaker: Any, png: bytes) -> None:
    answer = refusal(sagemaker, ContentType="text/plain", Body=png)

    assert (answer["code"], answer["status"], answer["OriginalStatusCode"]) == ("ModelError", 424, 415)
    assert "text/plain not supported" in answer["OriginalMessage"]
    assert "LogStreamArn" in answer
    assert answer["Error"]["Message"].startswith("Received client error (415) from primary with message")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ({"Body": b"x", "Accept": "image/gif"}, 406, "image/gif"),
        ({"Body": b""}, 400, "empty"),
        ({"Body": b"not an image at all"}, 400, "image"),
    ],
    ids=["unknown-accept", "empty-body", "not-an-image"],
)
def test_what_the_container_refuses_is_a_model_error(
    sagemaker: Any, arguments: dict[str, Any], status: int, text: str
) -> None:
    answer = refusal(sagemaker, **arguments)

    assert (answer["code"], answer["OriginalStatusCode"]) == ("ModelError", status)
    assert text in answer["OriginalMessage"].lower()


def test_a_truncated_image_is_a_model_error_400(sagemaker: Any, truncated_png: bytes) -> None:
    answer = refusal(sagemaker, Body=truncated_png)

    assert (answer["code"], answer["OriginalStatusCode"]) == ("ModelError", 400)


def test_an_unknown_endpoint_is_a_validation_error(sagemaker: Any, png: bytes) -> None:
    answer = refusal(sagemaker, EndpointName="nowhere", Body=png)

    assert (answer["code"], answer["status"]) == ("ValidationError", 400)
    assert answer["Error"]["Message"] == "Endpoint nowhere of account local not found."


@pytest.mark.parametrize("name", ["bad name", "a" * 64, "tiny/x", "-tiny", "ti_ny"])
def test_an_endpoint_name_outside_the_pattern_is_a_validation_error(sagemaker: Any, png: bytes, name: str) -> None:
    answer = refusal(sagemaker, EndpointName=name, Body=png)

    assert (answer["code"], answer["status"]) == ("ValidationError", 400)
    assert "hyphens" in answer["Error"]["Message"]


def test_a_body_over_the_limit_is_413(sagemaker: Any) -> None:
    answer = refusal(sagemaker, Body=bytes(1_048_577))

    assert answer["status"] == 413
    assert "HTTP content length exceeded 1048576 bytes." in answer["Error"]["Message"]


def test_a_target_model_is_refused_on_a_single_model_endpoint(sagemaker: Any, png: bytes) -> None:
    answer = refusal(sagemaker, TargetModel="a.tar.gz", Body=png)

    assert answer["code"] == "ValidationError"
    assert "does not support target model header" in answer["Error"]["Message"]


@pytest.mark.parametrize(("variant", "num_classes"), [("old", 3), ("new", 4)])
def test_a_target_variant_is_the_one_that_answers(
    sagemaker: Any, png: bytes, image: Array, variant: str, num_classes: int
) -> None:
    answer = sagemaker.invoke_endpoint(EndpointName="shop", ContentType="image/png", TargetVariant=variant, Body=png)

    assert answer["InvokedProductionVariant"] == variant
    probabilities = httpx.Response(200, content=answer["Body"].read()).json()
    np.testing.assert_allclose(probabilities, tiny_answer(image, num_classes), atol=1e-5)


def test_an_unknown_variant_is_a_validation_error(sagemaker: Any, png: bytes) -> None:
    answer = refusal(sagemaker, EndpointName="shop", TargetVariant="none", Body=png)

    assert answer["code"] == "ValidationError"
    assert "old, new" in answer["Error"]["Message"]


def test_variants_share_the_traffic(sagemaker: Any, png: bytes) -> None:
    """Weights 3 and 1: 40 requests all to one would happen once in 100 000 runs."""
    variants = {
        sagemaker.invoke_endpoint(EndpointName="shop", ContentType="image/png", Body=png)["InvokedProductionVariant"]
        for _ in range(40)
    }

    assert variants == {"old", "new"}


def test_the_container_form_answers_with_the_plain_status(http: httpx.Client, png: bytes) -> None:
    answer = http.post("/invocations", content=png, headers={"content-type": "text/plain"})

    assert answer.status_code == 415
    assert "text/plain not supported" in answer.json()["error"]


def test_ping_answers_200_without_a_body(http: httpx.Client) -> None:
    answer = http.get("/ping")

    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/invocations", "/endpoints/tiny/invocations"])
def test_get_is_a_wrong_method(http: httpx.Client, path: str) -> None:
    answer = http.get(path)

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "error" in answer.json()


def test_an_encoded_slash_never_reaches_another_endpoint(http: httpx.Client, png: bytes) -> None:
    answer = http.post("/endpoints/tiny%2Fx/invocations", content=png, headers={"content-type": "image/png"})

    assert answer.status_code == 400


def test_a_harmless_request_id_is_echoed(http: httpx.Client, png: bytes) -> None:
    headers = {"content-type": "image/png", "x-request-id": "my-id.7"}

    assert http.post("/invocations", content=png, headers=headers).headers["x-amzn-requestid"] == "my-id.7"
