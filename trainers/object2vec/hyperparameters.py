"""What Object2Vec can be told; names, defaults and ranges as its users know them (contract, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from trainers.hyperparameter_schema import Flag, Fraction, WholeNumber, choice, number

__all__ = ["COMPARATORS", "Hyperparameters", "SideSettings"]

COMPARATORS = ("hadamard", "concat", "abs_diff")
_SPARSE_OPTIMIZERS = ("adam", "adagrad", "sgd")


def _operators(value: object) -> object:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    found = tuple(str(part).strip() for part in parts)
    if not found or len(set(found)) < len(found) or not set(found) <= set(COMPARATORS):
        raise ValueError("Input should be a comma list of operators")
    return found


def _auto(value: object) -> object:
    text = str(value).strip().lower()
    return "auto" if text == "auto" else choice(number(value))


def _optional(value: object) -> object:
    return None if value is None or (isinstance(value, str) and not value.strip()) else _auto(value)


_Network = Literal["hcnn", "bilstm", "pooled_embedding"]
_Width = Annotated[int, Field(ge=1, le=9), BeforeValidator(number)]
_SeqLen = Annotated[int, Field(ge=1, le=5000), BeforeValidator(number)]
_Vocabulary = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=2, le=3_000_000)],
    Field(description="auto or an integer from 2 to 3000000"),
]
_Layers = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1, le=4)],
    BeforeValidator(_auto),
    Field(description="auto or an integer from 1 to 4"),
]
_TokenDim = Annotated[int, Field(ge=2, le=1000), BeforeValidator(number)]
_FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]*$", description="a file's name of letters, digits, '.', '_' and '-'")
]
_Open = {"allow_inf_nan": False}


class SideSettings(NamedTuple):
    """One encoder's share of the hyperparameters, with what it copies from the other resolved."""

    network: str
    cnn_filter_width: int
    layers: int
    max_seq_len: int
    vocab_size: int | Literal["auto"]
    token_embedding_dim: int
    pretrained_embedding_file: str
    vocab_file: str
    freeze_pretrained_embedding: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    enc0_max_seq_len: _SeqLen
    """Longer lists of tokens are cut; the tail is ignored."""
    enc0_vocab_size: Annotated[_Vocabulary, BeforeValidator(_auto)]
    """Token ids are below it. `auto`, not in the original: the largest id of the train channel, plus 1."""
    bucket_width: Annotated[int, Field(ge=0, le=100), BeforeValidator(number)] = 0
    """Pairs whose lengths lie within the same so many tokens share batches; 0: any may."""
    comparator_list: Annotated[
        tuple[str, ...],
        BeforeValidator(_operators),
        Field(description="a comma list of hadamard, concat, abs_diff, each at most once"),
    ] = COMPARATORS
    """How two encodings are put side by side, in this order."""
    dropout: Fraction = 0.0
    """Of encodings and of the MLP's layers."""
    early_stopping_patience: Annotated[int, Field(ge=1, le=5), BeforeValidator(number)] = 3
    """Epochs in a row without improvement before the stop."""
    early_stopping_tolerance: Annotated[float, Field(ge=1e-6, le=0.1, **_Open), BeforeValidator(number)] = 0.01
    """How much the loss must fall to count as improvement."""
    enc_dim: Annotated[int, Field(ge=4, le=10_000), BeforeValidator(number)] = 4096
    """Length of encodings; hcnn, bilstm. Those of pooled_embedding are as long as its tokens' embeddings."""
    enc0_network: _Network = "hcnn"
    enc0_cnn_filter_width: _Width = 3
    """hcnn."""
    enc0_freeze_pretrained_embedding: Flag = True
    """With a pretrained file: the table is not trained."""
    enc0_layers: _Layers = "auto"
    """auto: 4 for hcnn, 1 for bilstm; pooled_embedding has none."""
    enc0_pretrained_embedding_file: _FileName = ""
    """In the auxiliary channel: a line per word, with or without a first line of two counts."""
    enc0_token_embedding_dim: _TokenDim = 300
    enc0_vocab_file: _FileName = ""
    """In the auxiliary channel: a JSON object of words to ids."""
    enc1_network: Literal["enc0", "hcnn", "bilstm", "pooled_embedding"] = "enc0"
    """enc0: built as enc0 is, and every other `enc1_` setting is taken from it; weights are its own."""
    enc1_cnn_filter_width: _Width | None = None
    enc1_freeze_pretrained_embedding: Flag | None = None
    enc1_layers: _Layers | None = None
    enc1_max_seq_len: Annotated[_SeqLen | None, BeforeValidator(_optional)] = None
    enc1_pretrained_embedding_file: _FileName = ""
    enc1_token_embedding_dim: _TokenDim | None = None
    enc1_vocab_file: _FileName = ""
    enc1_vocab_size: Annotated[_Vocabulary | None, BeforeValidator(_optional)] = None
    epochs: Annotated[int, Field(ge=1, le=100), BeforeValidator(number)] = 30
    learning_rate: Annotated[float, Field(ge=1e-6, le=1.0, **_Open), BeforeValidator(number)] = 0.0004
    mini_batch_size: Annotated[int, Field(ge=1, le=10_000), BeforeValidator(number)] = 32
    """Pairs per step, over all processes; negatives are pairs too."""
    mlp_activation: Literal["tanh", "relu", "linear"] = "linear"
    mlp_dim: Annotated[int, Field(ge=2, le=10_000), BeforeValidator(number)] = 512
    mlp_layers: Annotated[int, Field(ge=0, le=10), BeforeValidator(number)] = 2
    negative_sampling_rate: Annotated[int, Field(ge=0, le=100), BeforeValidator(number)] = 0
    """Wrong pairs, of label 0, for each pair of the train channel whose label is not 0; drawn anew each epoch."""
    num_classes: Annotated[int, Field(ge=2, le=100_000), BeforeValidator(number)] = 2
    """softmax. The original ends at 30."""
    optimizer: Literal["adadelta", "adagrad", "adam", "sgd", "rmsprop"] = "adam"
    output_layer: Literal["softmax", "mean_squared_error"] = "softmax"
    tied_token_embedding_weight: Flag = False
    """One table of token embeddings for both encoders."""
    token_embedding_storage_type: Literal["dense", "row_sparse"] = "dense"  # noqa: S105  no password
    """row_sparse: a step reads and writes the rows of its batch alone."""
    weight_decay: Annotated[float, Field(ge=0, le=10_000, **_Open), BeforeValidator(number)] = 0.0
    """L2; biases are left out, and with row_sparse so are rows that are not in the batch."""
    tied_encoder_weight: Flag = False
    """Not in the original: one encoder, table included, for both sides, so that their embeddings compare."""
    feature_dim: str | int | None = None
    """Sent by an SDK; has no meaning."""
    seed: WholeNumber = 0
    """Not in the original."""

    def __post_init__(self) -> None:
        if self.enc1_network != "enc0":
            for name in ("enc1_max_seq_len", "enc1_vocab_size"):
                if getattr(self, name) is None:
                    raise ValueError(f"hyperparameter {name}: needed with enc1_network={self.enc1_network}")
        if self.is_sparse and self.optimizer not in _SPARSE_OPTIMIZERS:
            raise ValueError(
                f"hyperparameter optimizer: {self.optimizer} is not possible with "
                f"token_embedding_storage_type=row_sparse; expected one of {', '.join(_SPARSE_OPTIMIZERS)}"
            )
        if self.tied_encoder_weight and self.enc1_network != "enc0":
            raise ValueError(
                f"hyperparameter tied_encoder_weight: True needs enc1_network=enc0, not {self.enc1_network}"
            )
        first, second = self.sides
        self._check_files(first, second)
        if self.is_tied and (first.vocab_size, first.token_embedding_dim) != (
            second.vocab_size,
            second.token_embedding_dim,
        ):
            raise ValueError(
                "hyperparameter tied_token_embedding_weight: True needs the same vocab_size and token_embedding_dim of "
                f"both encoders, not {first.vocab_size} x {first.token_embedding_dim} and "
                f"{second.vocab_size} x {second.token_embedding_dim}"
            )
        if self.encoding_dim(0) != self.encoding_dim(1):
            raise ValueError(
                f"hyperparameter enc_dim: enc0 ({first.network}) makes encodings of {self.encoding_dim(0)} numbers and "
                f"enc1 ({second.network}) of {self.encoding_dim(1)}; the comparators need equal lengths "
                "(pooled_embedding: token_embedding_dim, others: enc_dim)"
            )

    @staticmethod
    def _check_files(*sides: SideSettings) -> None:
        for number_, side in enumerate(sides):
            if side.pretrained_embedding_file and not side.vocab_file:
                raise ValueError(f"hyperparameter enc{number_}_vocab_file: needed with a pretrained embedding file")

    @property
    def is_tied(self) -> bool:
        """Whether both encoders read one table."""
        return self.tied_token_embedding_weight or self.tied_encoder_weight

    @property
    def is_sparse(self) -> bool:
        """Whether tables are updated row by row."""
        return self.token_embedding_storage_type == "row_sparse"  # noqa: S105

    @property
    def sides(self) -> tuple[SideSettings, SideSettings]:
        first = self._side(0)
        return first, first if self.enc1_network == "enc0" else self._side(1)

    def _side(self, side: int) -> SideSettings:
        def given(name: str, default: Any) -> Any:
            value = getattr(self, f"enc{side}_{name}")
            return default if value is None else value

        network = str(given("network", ""))
        layers = given("layers", "auto")
        return SideSettings(
            network=network,
            cnn_filter_width=given("cnn_filter_width", 3),
            layers=(4 if network == "hcnn" else 1) if layers == "auto" else layers,
            max_seq_len=given("max_seq_len", 1),
            vocab_size=given("vocab_size", 2),
            token_embedding_dim=given("token_embedding_dim", 300),
            pretrained_embedding_file=given("pretrained_embedding_file", ""),
            vocab_file=given("vocab_file", ""),
            freeze_pretrained_embedding=given("freeze_pretrained_embedding", True),
        )

    def encoding_dim(self, side: int) -> int:
        """Numbers in an encoding (contract, section 6.3)."""
        settings = self.sides[side]
        return settings.token_embedding_dim if settings.network == "pooled_embedding" else self.enc_dim

    @property
    def num_outputs(self) -> int:
        return self.num_classes if self.output_layer == "softmax" else 1

    @property
    def task(self) -> Literal["classification", "regression"]:
        return "classification" if self.output_layer == "softmax" else "regression"
