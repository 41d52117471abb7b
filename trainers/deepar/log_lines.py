"""What the original's forecaster says while it trains, line by line (contract, section 4)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping

from trainers.deepar.evaluation import Scores
from trainers.progress import EpochLog, log

__all__ = ["HOST", "LossLog", "tell_final_loss", "tell_metrics", "tell_scores"]

HOST = "algo-1"
_BATCHES_PER_LINE = 5


class LossLog(EpochLog):
    """The lines of the original's forecaster (contract, section 4)."""

    _num_windows = 0

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._num_windows = 0

    def batch(self, num_samples: int, accuracy: Callable[[], float]) -> None:
        """What the others know as accuracy is the mean loss here."""
        self._num_windows += num_samples
        number, self._num_batches = self._num_batches, self._num_batches + 1
        if self._bar and self._line is not None:
            self._bar.advance(self._line, num_samples)
        elif number % _BATCHES_PER_LINE == 0:
            mean = accuracy()
            log.info("Epoch[%d] Batch[%d] avg_epoch_loss=%f", self._epoch, number, mean)
            log.info("#quality_metric: host=%s, epoch=%d, batch=%d train loss <loss>=%s",
                     HOST, self._epoch, number, mean)  # fmt: skip

    def trained(self, metrics: Mapping[str, float]) -> None:
        log.info("processed a total of %d examples", self._num_windows)
        log.info("#quality_metric: host=%s, epoch=%d, train loss <loss>=%s", HOST, self._epoch, metrics["loss"])
        log.info("#progress_metric: host=%s, completed %s %% of epochs", HOST, 100 * (self._epoch + 1) // self._epochs)
        log.info("#throughput_metric: host=%s, train throughput=%s records/second", HOST, metrics["throughput"])
        tell_metrics({"update.time": 1000 * self.seconds, "train_loss": metrics["loss"]}, self.seconds)

    def validated(self, metrics: Mapping[str, float]) -> None:
        """There is nothing but the loss."""

    def improved(self, objective: str, value: float) -> None:  # noqa: ARG002
        log.info("best epoch loss so far: %f (scales left out)", value)

    def not_improved(self) -> None:
        log.info("loss did not improve")


def tell_final_loss(loss: float, epoch: int) -> None:
    log.info("Final loss: %s (occurred at epoch %d)", loss, epoch)
    log.info("#quality_metric: host=%s, train final_loss <loss>=%s", HOST, loss)


def tell_scores(measured: Scores) -> dict[str, float]:
    mean = measured.mean_weighted_quantile_loss
    log.info("#test_score (%s, RMSE): %s", HOST, measured.rmse)
    log.info("#test_score (%s, mean_absolute_QuantileLoss): %s", HOST, measured.mean_absolute_quantile_loss)
    log.info("#test_score (%s, mean_wQuantileLoss): %s", HOST, mean)
    for tau, value in measured.weighted_quantile_loss.items():
        log.info("#test_score (%s, wQuantileLoss[%g]): %s", HOST, tau, value)
    log.info("#quality_metric: host=%s, test RMSE <loss>=%s", HOST, measured.rmse)
    log.info("#quality_metric: host=%s, test mean_wQuantileLoss <loss>=%s", HOST, mean)
    told = {"test:RMSE": measured.rmse, "test:mean_wQuantileLoss": mean}
    # relative losses of series of zeros alone are no numbers, which JSON cannot hold
    return {name: value for name, value in told.items() if math.isfinite(value)}


def tell_metrics(metrics: Mapping[str, float], seconds: float) -> None:
    """As AWS's tools read them: of an epoch, or of the whole run, which took so long until now; times in ms."""
    now = time.time()
    told = {
        "StartTime": now - seconds,
        "EndTime": now,
        "Dimensions": {"Algorithm": "AWS/DeepAR", "Host": HOST, "Operation": "training"},
        "Metrics": {name: {"sum": value, "count": 1, "min": value, "max": value} for name, value in metrics.items()},
    }
    log.info("#metrics %s", json.dumps(told))
