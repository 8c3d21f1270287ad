"""Settings of `bigcircuit recover` beside those of a config. Light, so that a typo is answered at once."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigcircuit.config.schema import Count, Fraction, Positive, Section, Weight

_RATES = {"lora": 1e-3, "rows": 1e-4}
"""`recover.train` -> the default of `recover.lr`: at 1e-3 whole weights lose what they had (benchmarks/LOG.md)."""


class RecoverSettings(Section):
    """How an exported model is fine-tuned, and on which text."""

    train: Literal["lora", "rows"] = "lora"
    """What is trained: `lora`, two thin matrices beside every projection of the layers; `rows`, the layers' own weights. In both
    rows and columns of zeros, the closed ones, stay zero; embeddings and the vocabulary projection stay as they are."""
    loss: Literal["kl", "next_token"] = "kl"
    """`kl`: KL(base || export) at every position, in nats; `next_token`: cross entropy of the text itself."""
    text: str | None = None
    """Corpus, as `task.path` of a text task: plain text, JSONL, CSV, Parquet or a data set."""
    field: str = "text"
    """Column of a corpus in rows, with the text of a document or its token ids."""
    generate: Count = 0
    """Documents that the base model writes itself, one window each, where no corpus is given."""
    tokens: Annotated[int, Field(ge=2)] = 64
    """Most tokens of a window."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the documents on which the model is scored before and after, and not trained; a column `split` wins."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the documents, not trained, by whose loss the step is chosen whose weights are written; 0 writes the last step's."""
    validate_every: Positive = 20
    """Steps between two scores on the validation windows; the export as it is, step 0, is scored too."""
    steps: Count = 300
    """Updates."""
    batch_size: Positive = 16
    """Windows of an update, over all ranks."""
    micro_batch_size: Positive = 8
    """Windows that go through the models at once on one rank; the result is the same on every number of ranks."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Highest learning rate of Adam; none: 1e-3 for `lora`, 1e-4 for `rows`."""
    lr_final: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate at the end as a share of the highest; the decay is a cosine."""
    lr_warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    rank: Positive = 8
    """Rank of the matrices of `lora`."""
    alpha: Weight = 16.0
    """Scale of `lora`: its product is multiplied by alpha / rank."""
    merge: bool = True
    """Add the matrices of `lora` to the weights. false: write them as a PEFT adapter of the export."""
    verify: bool = True
    """Open the recovered folder in a fresh process by the loader of its format, and compare it with the model in memory."""
    seed: Count = 0
    """Seed of the samples, of the order of the windows and of the first matrices."""
    log_every: Positive = 20
    """Steps between two lines of metrics.jsonl."""
    save_every: Positive = 100
    """Steps between two checkpoints; the newest two are kept."""

    @property
    def highest_rate(self) -> float:
        """Highest learning rate, given or by what is trained."""
        return self.lr or _RATES[self.train]

    @model_validator(mode="after")
    def _one_source(self) -> "RecoverSettings":
        if bool(self.text) == bool(self.generate):
            given = "both are given" if self.text else "none is given"
            raise ValueError(f"recover takes recover.text or recover.generate, and {given}; give one of them")
        if self.held_out + self.validation >= 1:
            raise ValueError(
                f"recover.held_out {self.held_out:g} and recover.validation {self.validation:g} leave no text to train on; make "
                "them add up to less than 1"
            )
        if self.train == "rows" and not self.merge:
            raise ValueError("recover.merge is false and recover.train is rows, which are the weights; leave merge out")
        return self
