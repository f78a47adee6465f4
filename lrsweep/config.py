"""What a sweep is made of, as frozen dataclasses: shapes, training, presets, and the trial they resolve to.

Nothing here imports torch, so ``--help`` is quick.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from lrsweep.errors import UserError
from lrsweep.names import look_up, nearest_first
from lrsweep.schemes import Scheme

Body = Literal["gpt", "llama"]
BODIES: dict[str, Body] = {"gpt": "gpt", "llama": "llama"}
"""``gpt``: LayerNorm, GELU, 4d MLP. ``llama``: RMSNorm, SwiGLU of 8d/3. Both: RoPE, no biases, untied embeddings."""
Schedule = Literal["cosine", "linear", "constant"]
DecayMode = Literal["decoupled", "independent"]
DecayOn = Literal["matrices", "all"]
OptimizerName = Literal["adamw", "stable_adamw", "muon"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Size of a GPT."""

    n_layers: int
    """Blocks."""
    d_model: int
    """Width of the stream."""
    n_heads: int
    """Attention heads; the head width is d_model / n_heads."""
    seq_len: int
    """Tokens a sequence."""
    vocab_size: int
    """Entries of the (untied) embedding and head."""

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.n_heads):
            raise UserError(f"n_heads {self.n_heads} must divide d_model {self.d_model} into heads of even width")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads


def mlp_width(scheme: Scheme, body: Body, d_model: int) -> int:
    """Hidden width of the MLP: 4d; for SwiGLU 8d/3 rounded up to a multiple of 64, unless the row asks for 4d."""
    if body == "gpt" or scheme.mlp_width == "4d":
        return 4 * d_model
    return 64 * math.ceil(8 * d_model / 3 / 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How every trial of one size is trained; only the learning rate and the seed differ between them."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Sequences a step."""
    warmup_steps: int
    """Steps of linear warm-up from 0 to the peak learning rate."""
    schedule: Schedule = "cosine"
    """Decay after the warm-up."""
    final_lr_ratio: float = 0.1
    """Learning rate of the last step over the peak (not for ``constant``)."""
    optimizer: OptimizerName = "adamw"
    """Update rule; a modifier of the scheme, as in ``qknorm+muon``."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's ε."""
    z_loss: float = 0.0
    """Factor of log²Z in what is minimized; a modifier of the scheme, as in ``qknorm+zloss``."""
    weight_decay: float = 0.1
    """λ: θ ← θ·(1 − η_t·λ) if decoupled, θ·(1 − (η_t/η_peak)·λ) if independent of the LR."""
    decay_mode: DecayMode = "decoupled"
    """Whether the weight decay of a step is scaled by the learning rate or only by its schedule."""
    decay_on: DecayOn = "matrices"
    """Whether the weight decay leaves gains and biases alone."""
    clip: float = 1.0
    """Global L2 norm to which gradients are clipped."""
    precision: Precision = "fp32"
    """``bf16``: autocast with fp32 weights and optimizer."""
    data_seed: int = 0
    """Order of the batches, the same for all trials."""
    heldout_tokens: int = 32_768
    """Size of the fixed held-out set on which final losses are read."""
    probe_every: int = 1
    """Interval in steps between measurements of the attention logits; norms are taken at every step."""
    report_every: int = 20
    """Steps between two fetches of the statistics from the device."""
    micro_batch: int | None = None
    """Sequences that a device takes at once, its gradients added up; None: its share of the batch."""

    def decides(self) -> dict[str, Any]:
        """The fields that decide a trial's numbers: all but how the work is cut up."""
        return {k: v for k, v in asdict(self).items() if k not in ("report_every", "micro_batch")}

    def __post_init__(self) -> None:
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise UserError(f"--micro-batch {self.micro_batch} must divide --batch-size {self.batch_size}")
        for name in ("steps", "batch_size", "probe_every", "report_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"--warmup-steps {self.warmup_steps} must be at least 0 and below --steps {self.steps}; "
                "lower the one or raise the other"
            )
        if not self.clip > 0:
            raise UserError(f"--clip must be above 0, got {self.clip}")
        if self.weight_decay < 0:
            raise UserError(f"--weight-decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.final_lr_ratio <= 1:
            raise UserError(f"--final-lr-ratio must lie between 0 and 1, got {self.final_lr_ratio}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 0 and below 1, got {getattr(self, name)}")
        for name, known in (("schedule", Schedule), ("decay_mode", DecayMode), ("optimizer", OptimizerName)):
            if getattr(self, name) not in get_args(known):
                raise UserError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")


def _flag(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePreset:
    """A named size: its shape, how long it trains, and the grid that brackets the frontier there."""

    name: str
    """Its parameter count, roughly, embeddings included."""
    shape: ModelShape
    """The model; ``vocab_size`` 256 means byte tokens, anything else a BPE of that size."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Sequences a step."""
    warmup_steps: int
    """Warm-up steps."""
    lrs: tuple[float, ...]
    """Learning rates of the default grid."""
    seeds: int
    """Seeds of the default grid."""

    @property
    def byte_tokens(self) -> bool:
        """Whether the corpus is read as bytes."""
        return self.shape.vocab_size == 256

    @property
    def epsilon(self) -> float:
        """Default ε in nats: how far above its best sibling a final loss may lie and still count as stable."""
        return 0.25 if self.byte_tokens else 0.5

    def train_config(self, **overrides: Any) -> TrainConfig:
        """The preset's training, with ``overrides``; warm-up follows ``steps`` unless it is given."""
        steps = overrides.get("steps", self.steps)
        warmup = max(1, round(self.warmup_steps * steps / self.steps)) if steps > 1 else 0
        return TrainConfig(**{"steps": steps, "batch_size": self.batch_size, "warmup_steps": warmup, **overrides})


_HALF_DECADES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
_OCTAVES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128, 0.256, 0.512, 1.024)
_SIMPLEGPT: dict[str, Any] = {"batch_size": 192, "lrs": (5e-4, *_OCTAVES[:-1]), "seeds": 1}
_SPIKE_NO_MORE: dict[str, Any] = {"batch_size": 512, "lrs": (1e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "seeds": 1}
_ANGPT: dict[str, Any] = {"batch_size": 256, "lrs": (5e-4, *_OCTAVES[:6]), "seeds": 1}
_RYBAKOV: dict[str, Any] = {"batch_size": 512, "lrs": (6e-3, 8e-3, 2e-2, 4e-2, 6e-2, 8e-2), "seeds": 1}


def _size(name: str, shape: tuple[int, int, int, int, int], **rest: Any) -> SizePreset:
    n_layers, d_model, n_heads, seq_len, vocab_size = shape
    model_shape = ModelShape(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, seq_len=seq_len, vocab_size=vocab_size
    )
    return SizePreset(name=name, shape=model_shape, **rest)


SIZES: dict[str, SizePreset] = {
    preset.name: preset
    for preset in (
        #             layers d heads T vocabulary
        _size("0.2m", (4, 64, 2, 128, 256), steps=300, batch_size=8, warmup_steps=30, lrs=_HALF_DECADES, seeds=2),
        _size("2m", (4, 128, 4, 256, 4096), steps=500, batch_size=16, warmup_steps=50, lrs=_OCTAVES, seeds=2),
        _size("10m", (6, 256, 4, 256, 8192), steps=800, batch_size=64, warmup_steps=100, lrs=_OCTAVES, seeds=3),
        _size("30m", (8, 512, 8, 512, 8192), steps=1500, batch_size=64, warmup_steps=150, lrs=_OCTAVES, seeds=2),
        _size("135m", (12, 768, 12, 1024, 32768), steps=3000, batch_size=32, warmup_steps=300, lrs=_OCTAVES, seeds=1),
        _size("780m", (24, 1536, 12, 2048, 32768), steps=5000, batch_size=8, warmup_steps=500, lrs=_OCTAVES, seeds=1),
        # The papers' own shapes; what is theirs and what is lrsweep's choice stands in experiments/<paper>/README.md.
        # SimpleGPT, from its code; the batch makes its steps 20 tokens a parameter.
        _size("39m", (8, 384, 6, 512, 32000), steps=7800, warmup_steps=78, **_SIMPLEGPT),
        _size("67m", (10, 512, 8, 512, 32000), steps=13400, warmup_steps=134, **_SIMPLEGPT),
        _size("102m", (12, 640, 10, 512, 32000), steps=20400, warmup_steps=204, **_SIMPLEGPT),
        _size("162m", (16, 768, 12, 512, 32000), steps=32400, warmup_steps=324, **_SIMPLEGPT),
        _size("271m", (16, 1024, 16, 512, 32000), steps=54200, warmup_steps=542, **_SIMPLEGPT),
        _size("360m", (18, 1152, 16, 512, 32000), steps=72000, warmup_steps=720, **_SIMPLEGPT),
        # Spike No More; 405M here, since the output head is not tied to the embedding.
        _size("350m", (24, 1024, 16, 2048, 50304), steps=50000, warmup_steps=2000, **_SPIKE_NO_MORE),
        # anGPT's 0.5B; 405M where the MLP is not 4d wide.
        _size("500m", (24, 1024, 16, 2048, 50304), steps=20000, warmup_steps=1000, **_ANGPT),
        # Rybakov et al.
        _size("830m", (24, 1024, 16, 4096, 256000), steps=95000, warmup_steps=2000, **_RYBAKOV),
    )
}
"""Presets by name. The smallest reads bytes and fits two CPU cores; ``10m`` is the default on a GPU."""


def find_size(name: str) -> SizePreset:
    """The preset of that name; UserError with the known ones, nearest first."""
    return look_up(name, SIZES, flag="--size", what="size")


def find_body(name: str) -> Body:
    """The body of that name; UserError with the known ones, nearest first."""
    return look_up(name, BODIES, flag="--body", what="body")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which text, as tokens."""

    path: str | None
    """What ``--data`` named; None: the embedded Python source text."""
    text_column: str
    """Column or field of the text in JSONL, Parquet and data sets."""
    tokenizer: str | int
    """``bytes``, or the vocabulary size of a byte-level BPE."""
    data_hash: str
    """Hash of text and tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One training run, fully resolved: what :func:`lrsweep.train.run_trial` needs, and nothing else."""

    scheme: Scheme
    body: Body
    size: str
    shape: ModelShape
    train: TrainConfig
    data: DataConfig
    device: Literal["cpu", "cuda"]
    lr: float
    seed: int
    trial: str = field(init=False)
    """Hash of all that decides the trial's numbers."""

    def __post_init__(self) -> None:
        decides = {
            "scheme": self.scheme.build_fields(),
            "body": self.body,
            "shape": asdict(self.shape),
            "train": self.train.decides(),
            "data": [self.data.tokenizer, self.data.data_hash],
            "device": self.device,
            "lr": self.lr,
            "seed": self.seed,
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
        object.__setattr__(self, "trial", f"{self.scheme.name}-{self.size}-lr{self.lr:g}-s{self.seed}-{digest}")

    @property
    def model(self) -> tuple[str, str, str]:
        """What is trained at all its LRs and from all its seeds: scheme, body, size."""
        return self.scheme.name, self.body, self.size

    @property
    def label(self) -> str:
        """Short human name."""
        return f"{self.scheme.name} lr {self.lr:g} seed {self.seed}"


def check_lrs(lrs: tuple[float, ...]) -> tuple[float, ...]:
    """The grid, sorted and without repeats; UserError if it is empty or holds anything but positive finite numbers."""
    if not lrs:
        raise UserError("--lrs is empty; give at least one learning rate, for example --lrs 1e-3 3e-3 1e-2")
    for lr in lrs:
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"--lrs must be positive finite numbers, got {lr:g}")
    return tuple(sorted(set(lrs)))


def shown(metavar: str) -> Any:
    """How ``--help`` shows a flag: with this metavar, and without a default that only means "not given"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


_Names = Annotated[tuple[str, ...], shown("NAME [NAME ...]")]
_Numbers = Annotated[tuple[float, ...], shown("X [X ...]")]
_Count = Annotated[int | None, shown("N")]
_Number = Annotated[float | None, shown("X")]
_Text = Annotated[str | None, shown("TEXT")]
_Flag = Annotated[bool, shown("")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """What a user asks for. A field left alone takes the preset's value; flags go over a file, a file over that."""

    arch: _Names = ()
    """Schemes to compare (see `lrsweep schemes`), or all; modifiers follow, as in qknorm+zloss, and FILE.py:NAME is
    a scheme of your own."""
    body: _Names = ("gpt",)
    """Transformer body: gpt (LayerNorm, GELU), llama (RMSNorm, SwiGLU), or both."""
    size: _Names = ()
    """Size presets; default 0.2m on a CPU, 10m on a GPU."""
    lrs: _Numbers = ()
    """Peak learning rates of the grid."""
    seeds: _Count = None
    """Number of seeds, from 0 on."""
    search: _Number = None
    """Train only the LRs that tell where a scheme's frontier lies, and others between them, until the bounds of LR50's
    95% interval are at most this factor apart; never more trials than the whole grid."""
    steps: _Count = None
    """Optimizer steps of a trial."""
    batch_size: _Count = None
    """Sequences a step."""
    micro_batch: _Count = None
    """Sequences that a device takes at once; default: as many of its share as its memory holds."""
    warmup_steps: _Count = None
    """Steps of linear warm-up."""
    schedule: Annotated[Schedule | None, shown("{cosine,linear,constant}")] = None
    """Decay after the warm-up."""
    final_lr_ratio: _Number = None
    """Learning rate of the last step over the peak."""
    beta2: _Number = None
    """AdamW's decay of the second moment."""
    weight_decay: _Number = None
    """Weight decay."""
    decay_on: Annotated[DecayOn | None, shown("{matrices,all}")] = None
    """Whether the weight decay leaves gains and biases alone."""
    decay_mode: Annotated[DecayMode | None, shown("{decoupled,independent}")] = None
    """Weight decay scaled by the LR, or only by its schedule."""
    clip: _Number = None
    """Global gradient norm to clip at."""
    data_seed: _Count = None
    """Order of the batches, the same for all trials."""
    data: _Text = None
    """Text file, JSONL, Parquet, .bin, folder or hf:NAME; default: embedded Python source."""
    text_column: Annotated[str, shown("NAME")] = "text"
    """Column of the text in JSONL, Parquet and data sets."""
    out: _Text = None
    """Result folder; default results/ARCH-BODY-SIZE."""
    epsilon: _Number = None
    """Nats above its best sibling at which a final loss counts as degraded; default 0.25 with bytes, 0.5 with a BPE."""
    probe_every: _Count = None
    """Interval in steps of the attention-logit probe."""
    device: Annotated[Literal["auto", "cpu", "cuda"], shown("{auto,cpu,cuda}")] = "auto"
    """Where to train."""
    jobs: _Count = None
    """Trials at a time on this machine (on a GPU: on each GPU)."""
    gpus_per_trial: Annotated[int, shown("N")] = 1
    """GPUs that train one trial together, each on its share of every batch (on a CPU: processes of one thread)."""
    ray_address: _Text = None
    """Ray cluster to run on; default: a local one that ends with the sweep."""
    local: _Flag = False
    """Run the trials in this process, one after the other, without Ray."""
    dry_run: _Flag = False
    """Print what would run, and stop."""


TRAIN_FLAGS = (
    "steps", "batch_size", "micro_batch", "warmup_steps", "schedule", "final_lr_ratio", "beta2", "weight_decay",
    "decay_on", "decay_mode", "clip", "data_seed", "probe_every",
)  # fmt: skip
"""Fields of :class:`SweepConfig` that override the preset's training."""


def read_config_file(path: Path) -> dict[str, Any]:
    """The fields that a TOML file sets; keys are those of :class:`SweepConfig`.

    Raises:
        UserError: unreadable, not TOML, an unknown key or a value of the wrong type; the message names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}") from None
    types = get_type_hints(SweepConfig)
    for key, value in values.items():
        if key not in types:
            raise UserError(
                f"--config {path}: unknown key {key!r}; nearest known: {', '.join(nearest_first(key, types)[:5])}"
            )
        values[key] = _convert(types[key], value, where=f"--config {path}: {key}")
    return values


def _convert(kind: Any, value: Any, *, where: str) -> Any:
    """``value`` of a TOML file as a field of type ``kind``."""
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise UserError(f"{where} is empty; give at least one value or leave the key out")
        return tuple(_convert(get_args(kind)[0], item, where=where) for item in items)
    options = [k for k in get_args(kind) if k is not NoneType] if get_origin(kind) in (UnionType, Union) else [kind]
    kind = options[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{where} must be one of {', '.join(get_args(kind))}, got {value!r}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value
