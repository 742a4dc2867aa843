"""The built-in encoder ``tiny``: a small BERT with random weights, its tokenizer trained on the battles at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefcli.encoders.safety import quiet_libraries

TINY = "tiny"

TINY_CONFIG = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TINY_VOCAB_SIZE = 8192


def train_tokenizer(texts: Iterable[str], vocab_size: int = TINY_VOCAB_SIZE, *, mask: bool = False) -> Any:
    """A byte-level BPE tokenizer trained on the given texts, lower-casing, with BERT's special tokens.

    Byte-level because it knows every character and its training is deterministic: WordPiece numbers its initial
    alphabet in random order and breaks ties by those numbers. With ``mask`` there is a mask token, too.
    """
    with quiet_libraries():
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        if mask:
            special["mask_token"] = "[MASK]"
        tokenizer = Tokenizer(models.BPE(unk_token=special["unk_token"]))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(special.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=TINY_CONFIG["max_position_embeddings"],
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **special,
        )
