"""What Seq2seq can be told; names, defaults and ranges as its users know them (contract, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from trainers.hyperparameter_schema import Flag, Fraction, PositiveInteger, WholeNumber, number

__all__ = ["Hyperparameters"]


def _optional(value: object) -> object:
    return None if value is None or (isinstance(value, str) and not value.strip()) else number(value)


_Open = {"allow_inf_nan": False}
_Integer = Annotated[int, BeforeValidator(number)]
_Number = Annotated[float, Field(**_Open), BeforeValidator(number)]
_Limit = Annotated[PositiveInteger | None, BeforeValidator(_optional)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    batch_size: PositiveInteger = 64
    """Sentence pairs per update, over all processes."""
    beam_size: PositiveInteger = 5
    """Of validation's BLEU, and of inference where a request says nothing."""
    bleu_sample_size: Annotated[int, Field(ge=-1), BeforeValidator(number)] = 0
    """Validation pairs that are translated for BLEU at each checkpoint, always the same ones; -1: all. 0: none, or all
    where optimized_metric is bleu."""
    bucket_width: PositiveInteger = 10
    """Steps of the longer side's bucket lengths."""
    bucketing_enabled: Flag = True
    """False: every batch is as wide as the longest sequences allowed."""
    checkpoint_frequency_num_batches: PositiveInteger = 1000
    """Updates from one evaluation to the next; the run's end is always evaluated."""
    checkpoint_threshold: PositiveInteger = 3
    """Evaluations without improvement of optimized_metric before the stop."""
    clip_gradient: _Number = 1.0
    """Largest absolute value of every gradient; negative: any."""
    cnn_activation_type: Literal["glu", "relu", "softrelu", "sigmoid", "tanh"] = "glu"
    cnn_hidden_dropout: Fraction = 0.0
    """Between layers."""
    cnn_kernel_width_decoder: PositiveInteger = 5
    cnn_kernel_width_encoder: PositiveInteger = 3
    cnn_num_hidden: PositiveInteger = 512
    decoder_type: Literal["rnn", "cnn"] = "rnn"
    embed_dropout_source: Fraction = 0.0
    embed_dropout_target: Fraction = 0.0
    encoder_type: Literal["rnn", "cnn"] = "rnn"
    fixed_rate_lr_half_life: PositiveInteger = 10
    """In evaluations; fixed_rate_ schedulers."""
    learning_rate: Annotated[float, Field(gt=0, **_Open), BeforeValidator(number)] = 0.0003
    loss_type: Literal["cross-entropy"] = "cross-entropy"
    lr_scheduler_type: Literal["plateau_reduce", "fixed_rate_inv_t", "fixed_rate_inv_sqrt_t"] = "plateau_reduce"
    max_num_batches: Annotated[int, Field(ge=-1), BeforeValidator(number)] = -1
    """Updates; -1 for any number."""
    max_num_epochs: _Limit = None
    """When given, training goes on until then, whether it improves or not."""
    max_seq_len_source: PositiveInteger = 100
    """Longer sequences are cut in training; in inference they are translated in pieces."""
    max_seq_len_target: PositiveInteger = 100
    """`<s>` not counted."""
    min_num_epochs: WholeNumber = 0
    """No early stop before."""
    momentum: Annotated[
        Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")] | None,
        BeforeValidator(_optional),
    ] = None
    """sgd."""
    num_embed_source: PositiveInteger = 512
    num_embed_target: PositiveInteger = 512
    num_layers_decoder: PositiveInteger = 1
    num_layers_encoder: PositiveInteger = 1
    optimized_metric: Literal["perplexity", "accuracy", "bleu"] = "perplexity"
    """Chooses the best model, and ends the run."""
    optimizer_type: Literal["adam", "sgd", "rmsprop"] = "adam"
    plateau_reduce_lr_factor: Annotated[
        float, Field(gt=0, le=1, description="a number above 0, at most 1", **_Open), BeforeValidator(number)
    ] = 0.5
    plateau_reduce_lr_threshold: PositiveInteger = 3
    """Evaluations without improvement before the rate falls."""
    rnn_attention_in_upper_layers: Flag = True
    """Decoder layers above the first see the attention's context too (GNMT, arXiv:1609.08144)."""
    rnn_attention_num_hidden: _Limit = None
    """By default rnn_num_hidden."""
    rnn_attention_type: Literal["dot", "fixed", "mlp", "bilinear", "multihead", "coverage"] = "mlp"
    """multihead and coverage are not in the original."""
    rnn_attention_num_heads: PositiveInteger = 8
    """multihead. Not in the original."""
    rnn_cell_type: Literal["lstm", "gru"] = "lstm"
    rnn_decoder_state_init: Literal["last", "avg", "zero"] = "last"
    """What the decoder begins with: the encoder's last state, the mean of its states, or nothing."""
    rnn_first_residual_layer: Annotated[int, Field(ge=2), BeforeValidator(number)] = 2
    rnn_num_hidden: PositiveInteger = 1024
    """Even."""
    rnn_residual_connections: Flag = False
    rnn_decoder_hidden_dropout: Fraction = 0.0
    training_metric: Literal["perplexity", "accuracy"] = "perplexity"
    """What the training log tells."""
    weight_decay: Annotated[float, Field(ge=0, **_Open), BeforeValidator(number)] = 0.0
    weight_init_scale: Annotated[float, Field(gt=0, **_Open), BeforeValidator(number)] = 2.34
    """uniform: the largest absolute weight; xavier: the magnitude."""
    weight_init_type: Literal["uniform", "xavier"] = "xavier"
    xavier_factor_type: Literal["in", "out", "avg"] = "in"
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="a number from 0 to below 1"), BeforeValidator(number)
    ] = 0.0
    """Share of the probability that is spread over the vocabulary (arXiv:1512.00567). Not in the original."""
    learning_rate_warmup_num_batches: WholeNumber = 0
    """Updates over which the rate rises from 0. Not in the original."""
    cooldown: Fraction = 0.0
    """Last share of a run of known length in which the rate falls to 0, straight. Not in the original."""
    weight_tying: Flag = False
    """The output layer's weights are the target embeddings. Not in the original."""
    precision_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the arithmetic. Not in the original."""
    seed: WholeNumber = 0
    """Not in the original."""

    def __post_init__(self) -> None:
        if "rnn" in (self.encoder_type, self.decoder_type) and self.rnn_num_hidden % 2:
            raise ValueError(f"hyperparameter rnn_num_hidden: {self.rnn_num_hidden} must be even")
        if self.rnn_attention_type == "multihead" and self.attention_num_hidden % self.rnn_attention_num_heads:
            raise ValueError(
                f"hyperparameter rnn_attention_num_heads: {self.rnn_attention_num_heads} must divide "
                f"rnn_attention_num_hidden={self.attention_num_hidden}"
            )
        if self.weight_tying and self.num_embed_target != self.decoder_num_hidden:
            raise ValueError(
                f"hyperparameter weight_tying: True needs num_embed_target={self.num_embed_target} to equal the "
                f"decoder's {self.decoder_num_hidden} hidden numbers"
            )
        if self.cooldown and self.max_num_epochs is None and self.max_num_batches < 0:
            raise ValueError(
                f"hyperparameter cooldown: {self.cooldown:g} needs max_num_epochs or max_num_batches, for the end of "
                "the run must be known"
            )
        if self.max_num_batches == 0:
            raise ValueError("hyperparameter max_num_batches: 0 must be -1, for any number, or at least 1")

    @property
    def attention_num_hidden(self) -> int:
        return self.rnn_attention_num_hidden or self.rnn_num_hidden

    @property
    def decoder_num_hidden(self) -> int:
        """Numbers of the state that words are predicted from."""
        return self.rnn_num_hidden if self.decoder_type == "rnn" else self.cnn_num_hidden

    @property
    def encoder_num_hidden(self) -> int:
        """Numbers that the encoder makes of each source token."""
        return self.rnn_num_hidden if self.encoder_type == "rnn" else self.cnn_num_hidden

    @property
    def bleu_sample(self) -> int:
        """As `bleu_sample_size`, with what 0 stands for resolved."""
        if self.bleu_sample_size == 0 and self.optimized_metric == "bleu":
            return -1
        return self.bleu_sample_size
