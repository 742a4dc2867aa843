"""The options of training and prediction as typed keyword arguments: ``prefcli.train(file, epochs=1)``.

Made by ``make docs`` from :mod:`prefcli.options`, which has their limits; mypy and editors check and complete them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict


class AblateKeywords(TypedDict, total=False):
    """What ``ablate`` takes."""

    recipe: Literal["baseline", "fast", "strong"]
    """Defaults for all other options: baseline: the original notebook's method, siamese on NLTK-normalised text; fast:
    boosted text statistics, minutes on a laptop; strong: siamese with interaction on longer raw text in both orders,
    for a GPU."""
    text: Literal["nltk", "light", "raw"] | None
    """Text normalisation. [default: nltk; of features, reward, LoRA, decoders and --recipe strong: raw]"""
    encoder: str | Path | None
    """A folder, a model on the hub (owner/name), minilm (22 M parameters, from the hub or an installed package), or
    tiny, the built-in one. [default: microsoft/deberta-v3-small, or the best one on this machine where it cannot be
    had]"""
    architecture: Literal["siamese", "cross-encoder", "reward", "features"]
    """siamese: one encoder reads the prompt with each answer; cross-encoder: it reads both answers at once; reward: it
    gives each answer one number, as transformers' sequence classifiers do; features: boosted text statistics, no
    encoder."""
    combine: Literal["concat", "interaction"]
    """How the vectors of A and B are joined; interaction adds a - b and a * b."""
    pooling: Literal["auto", "mean", "last", "cls", "attention"]
    """The vector of a text: its tokens' mean, its last token, its first (cls), or their mean with learned weights
    (attention); auto: last for a language model, else mean."""
    head: Literal["linear", "mlp"]
    """What gives the outcomes' logits: one linear layer, or two with GELU between them."""
    reinit_layers: int
    """Draw the encoder's top N layers at random, as before its pretraining."""
    dropout: float | None
    """The encoder's dropout probabilities. [default: those in its configuration]"""
    template: Literal["auto", "tokens", "words", "chat"]
    """What separates prompt and answers: special tokens, words, or (reward only) the tokenizer's chat template; auto:
    words for a language model; for reward chat, if the tokenizer has a chat template."""
    max_length: int
    """Tokens per sequence, special tokens included."""
    truncation: Literal["head", "head-tail"]
    """What is kept of a field that is too long: its head; or head and tail, last turns first, with a mark at the
    cut."""
    epochs: int
    """Passes over the training battles."""
    batch_size: int
    """Battles per optimizer step."""
    micro_batch: int
    """Maximum battles per forward pass; 0: as many as fit a token budget."""
    lr: float | None
    """Peak learning rate. [default: 2e-5; for tiny 1e-3; for LoRA 2e-4]"""
    warmup: float
    """Share of the steps in which the learning rate rises linearly from 0."""
    layer_decay: float
    """Each layer's learning rate is X times that of the layer above: X for the top layer, least for the embeddings."""
    weight_decay: float
    """AdamW's weight decay, not applied to biases and norms."""
    clip: float
    """Maximum norm of the gradient; 0: no clipping."""
    label_smoothing: float
    """Share of each label that is spread over the outcomes that occur."""
    loss_input: Literal["logits", "softmax", "log-softmax"]
    """What the loss is computed on; anything but logits is an ablation."""
    swap: bool
    """Train on both orders of each battle within the same step; only cross-encoder takes longer."""
    center_rewards: float
    """Weight of the mean of (r_A + r_B)^2 in the loss, which keeps rewards around 0."""
    margin: float
    """By how much the better answer's reward must exceed the other's in the loss."""
    tie: Literal["constant", "prompt"]
    """How likely ties are: learnt as a constant, or from the prompt."""
    soft_labels: str | Path | None
    """A file of predictions to train on as soft labels, joined by id; battles without outcome count too."""
    soft_weight: float
    """Weight of a battle's soft label against its outcome."""
    soft_temperature: float
    """Soft labels are raised to the power 1/T: above 1 softens, below 1 sharpens."""
    pretrain: int
    """Before the fit train the encoder for N steps on the training battles' text, by masked language modelling;
    --max-steps and --max-time do not count these."""
    pretrain_lr: float | None
    """Peak learning rate of --pretrain. [default: 1e-4; for tiny 1e-3]"""
    lora_rank: int
    """Train LoRA adapters of this rank and freeze the encoder; 0: train all weights."""
    lora_alpha: float | None
    """Adapters are scaled by alpha / rank. [default: twice the rank]"""
    lora_dropout: float
    """Dropout on the adapters' inputs."""
    lora_targets: str
    """Layers with adapters; names are such as q_proj,v_proj."""
    quantize: Literal["none", "8bit", "4bit"]
    """Load the frozen weights in 8 or 4 bits; needs --lora-rank and a CUDA GPU."""
    shard: bool
    """Under torchrun: shard weights, gradients and optimizer state (FSDP); less memory, more communication."""
    fast_attention: bool
    """Compute DeBERTa (and on a CPU any encoder's linear layers) faster, with the same results."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    precision: Literal["auto", "fp32", "fp16", "bf16"]
    """auto picks what the device is good at (bf16 on a CPU with AMX), and says why."""
    device: str
    """auto takes a GPU if there is one; cuda:1 is the second."""
    validation: float
    """Share of the battles held out, by prompt; 0: train on all."""
    validation_file: str | Path | None
    """Validate on the battles of this file instead of holding some out."""
    folds: int
    """Train N folds and predict each battle by the model that did not see it."""
    max_steps: int
    """Stop a fit after N steps; 0: no limit."""
    max_time: float
    """Stop a fit after so long, validation included; 0: no limit."""
    log_every: int
    """Write metrics every N steps."""
    eval_every: int
    """Validate every N optimizer steps; 0: after each epoch."""
    keep: Literal["best", "last"]
    """Which weights to keep: the best by validation, or the last."""
    patience: int
    """Stop after N validations without improvement; 0: never."""
    checkpoint_every: int
    """Checkpoint every N steps; 0: every 5 minutes."""
    keep_checkpoints: bool
    """Keep a finished run's checkpoints; without it they are removed."""
    seed: int
    """Seed of everything that is random."""
    limit: int | None
    """Train on N battles only, drawn at random by prompt."""
    tracker: str | None
    """Also send metrics and options there: comma-separated, or repeat the flag; wandb needs a network unless
    WANDB_MODE=offline."""


class TrainKeywords(AblateKeywords, total=False):
    """What ``train``, ``estimate`` and ``tune`` take."""

    num_leaves: int | None
    """Leaves of a tree. [default: 31; with under 5,000 battles 8]"""
    shrinkage_rate: float | None
    """By how much each tree counts, LightGBM's learning_rate. [default: 0.06; with under 5,000 battles 0.04]"""
    min_data_in_leaf: int | None
    """Battles in a leaf at least, in both orders. [default: 100; with under 5,000 battles 20]"""
    feature_fraction: float | None
    """Share of the statistics that a tree may use. [default: 0.3; with under 5,000 battles 0.2]"""
    lambda_l2: float | None
    """L2 regularisation of the leaves. [default: 5]"""
    seeds: int | None
    """Boosters with different seeds, whose scores are averaged. [default: 1]"""


class PredictKeywords(TypedDict, total=False):
    """What ``predict`` takes."""

    models: Sequence[str | Path]
    """Runs, by folder, name or hf://owner/name; none: the latest run."""
    swap_average: bool
    """Average over both orders of the answers: twice the time for cross-encoder."""
    activation: Literal["softmax", "none"]
    """softmax, or none for raw scores (an ablation)."""
    as_source: str | None
    """Of a run of several sources: predict as this one votes. [default: those that can tie, pooled]"""
    calibrated: bool
    """Fit a temperature (of several runs, weights) on held-out battles and keep it if that helps."""
    temperature: float | None
    """Divide log-odds by X instead of a fitted temperature: 2 for voters other than in training, if there are no votes
    of theirs to calibrate on."""
    precision: Literal["auto", "fp32", "fp16", "bf16"]
    """auto picks what the device is good at (bf16 on a CPU with AMX), and says why."""
    device: str
    """auto takes a GPU if there is one; cuda:1 is the second."""
    fast_attention: bool
    """Compute encoders faster, with the same results."""
    encoder: str | Path | None
    """Where the encoder of a LoRA run is now, if it has moved."""
    limit: int | None
    """Only the first N battles."""
    workers: int | None
    """Processes for text normalisation. [default: all cores]"""


class RankKeywords(TypedDict, total=False):
    """What ``rank`` takes."""

    models: Sequence[str | Path]
    """Runs, by folder, name or hf://owner/name; none: the latest run."""
    swap_average: bool
    """Average over both orders of the answers: twice the time for cross-encoder."""
    activation: Literal["softmax", "none"]
    """softmax, or none for raw scores (an ablation)."""
    as_source: str | None
    """Of a run of several sources: predict as this one votes. [default: those that can tie, pooled]"""
    calibrated: bool
    """Fit a temperature (of several runs, weights) on held-out battles and keep it if that helps."""
    temperature: float | None
    """Divide log-odds by X instead of a fitted temperature: 2 for voters other than in training, if there are no votes
    of theirs to calibrate on."""
    precision: Literal["auto", "fp32", "fp16", "bf16"]
    """auto picks what the device is good at (bf16 on a CPU with AMX), and says why."""
    device: str
    """auto takes a GPU if there is one; cuda:1 is the second."""
    fast_attention: bool
    """Compute encoders faster, with the same results."""
    encoder: str | Path | None
    """Where the encoder of a LoRA run is now, if it has moved."""
    limit: int | None
    """Only the first N questions."""
    workers: int | None
    """Processes for text normalisation. [default: all cores]"""
    method: Literal["fit", "mean-win"]
    """Scores are rewards, of other runs strengths (log-odds) fitted to the compared pairs; mean-win: they are the mean
    probabilities to win, ties half."""
    all_pairs: int
    """Compare all pairs of up to N answers to a prompt; of more, each answer with 16 others. Reward runs read each
    answer once."""
    length_penalty: float
    """What an answer's score loses for each doubling of its length, in log-odds: X * log2(1 + characters)."""
    pairs_select: Literal["best-worst", "best-rest", "all"]
    """Which answers of a prompt are paired: the first with the last, the first with each other one, or all."""
    pairs_min_probability: float
    """Minimum probability that the chosen answer is preferred; a tie is not."""
    pairs_min_margin: float
    """Minimum difference of the two answers' scores."""
    pairs_max_per_prompt: int
    """At most N pairs of a prompt, the most probable ones; 0: no limit."""
    pairs_ties: Literal["drop", "kto"]
    """Pairs of which a tie is the most probable outcome: drop them; or kto: write single answers with a label instead
    of pairs, and answers that tie with a chosen or a rejected one get its label."""
    pairs_layout: Literal["trl", "trl-text", "llama-factory"]
    """TRL's messages, TRL's plain text, or LLaMA-Factory's messages (sharegpt)."""
