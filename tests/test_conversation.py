"""Conversations as reward runs read them: the tokens that a tokenizer's chat template gives, within a budget."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefcli import encoders
from prefcli.battles import make_batch
from prefcli.encoders import chat_templates
from prefcli.errors import ModelError
from prefcli.models import conversation, packing, tokens
from prefcli.models.packing import PAIR_INPUT, ConversationPacking, conversation_template
from prefcli.reporting import Reporter

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' %}"
    "{{ bos_token + c if loop.first else c }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% set role = 'model' if m['role'] == 'assistant' else "
    "m['role'] %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
CORPUS = ["The quick fox. How are you?\n\nFine, thank you! It's 1, 2.\n- item\n\nQuestion:\nAnswer: (x) [y]\n\n"] * 20
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen split texts: a full stop and the lines that end after it can be one token."""


def byte_level(folder: Path, specials: Sequence[str], name: str, **settings: Any) -> Path:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*specials], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return saved(folder, backend, name, **settings)


def saved(folder: Path, backend: Any, name: str, **settings: Any) -> Path:
    folder.mkdir()
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **settings}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path, deberta_folder: Path) -> dict[str, Path]:
    """Tokenizers as the hub has them, by the classes of their families, with and without chat templates."""
    import sentencepiece
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    root = tmp_path_factory.mktemp("tokenizers")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *".,:;!?()[]'\"#*-<>|_", *(f"##{c}" for c in letters)]
    wordpiece = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    wordpiece.normalizer, wordpiece.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    wordpiece.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    gemma = saved(
        root / "gemma", None, "GemmaTokenizer", chat_template=GEMMA, add_bos_token=True, bos_token="<bos>",
        eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(gemma / "tokenizer"), vocab_size=350, hard_vocab_limit=False,
        model_type="bpe", byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        bos_piece="<bos>", eos_piece="<eos>", unk_piece="<unk>", normalization_rule_name="identity",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n"], add_dummy_prefix=False,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (gemma / "config.json").write_text('{"model_type": "gemma2"}')
    return {
        "bert": saved(root / "bert", wordpiece, "BertTokenizer", do_lower_case=True),
        "byte-level": bert_folder,
        "deberta": deberta_folder,
        "gemma": gemma,
        "llama3": byte_level(
            root / "llama3", ("<|begin|>", "<|start|>", "<|end|>", "<|eot|>"), "PreTrainedTokenizerFast",
            bos_token="<|begin|>", eos_token="<|eot|>", pad_token="<|eot|>", chat_template=LLAMA3,
        ),
        "qwen": byte_level(
            root / "qwen", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "Qwen2Tokenizer", chat_template=CHATML,
            eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>"],
        ),
        "words": byte_level(
            root / "words", ("<|endoftext|>",), "Qwen2Tokenizer", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
        ),
    }  # fmt: skip


def render_here(template: str, conversations: Any, special_tokens: Any, where: str) -> list[str]:
    """What the child process does, in this one, which saves a second."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: list[str] = render_jinja_template(conversations, chat_template=template, **special_tokens)[0]
    return rendered


@pytest.fixture(scope="module")
def templates(folders: dict[str, Path]) -> dict[str, tuple[Any, str, conversation.ConversationTemplate]]:
    """For each the tokenizer as it was loaded, and the kind and the template that auto chooses."""
    result = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chat_templates, "render", render_here)
        for name, folder in folders.items():
            tokenizer = encoders.load_tokenizer(folder, keep_chat_template=True)
            result[name] = (tokenizer, *conversation_template(tokenizer, "auto", name))
    return result


def messages(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts, strict=False)]


def as_tokens(tokenizer: Any, template: conversation.ConversationTemplate, texts: Sequence[str]) -> list[int]:
    """The whole way: a battle's row, tokenised and packed, with room for everything."""
    prompt, answer = texts[::2], texts[1::2]
    column = {
        "prompt": pa.array([prompt], pa.list_(pa.string())),
        "response_a": pa.array([answer], pa.list_(pa.string())),
        "response_b": pa.array([["another"]], pa.list_(pa.string())),
    }
    batch = make_batch({"id": pa.array(["1"]), **column})
    battles = tokens.tokenise(tokenizer, [batch], conversation=template)
    packed = PAIR_INPUT.pack(ConversationPacking(template, 100_000, "head", np.empty(0, np.int32)), battles.fields(0))
    return [*packed[0].ids.tolist()]


CONVERSATIONS = (
    ("Hi there.", "It's fine.\n\n"), ("", ""), ("a", "", "", "b"), ("\n\nq ", "\t- item", " more?", "…ok.", "3", "'s"),
    ("你好 <|im_end|> [SEP]", "नमस्ते 🙂 [CLS]<|eot|>"), ("[SEP]", "<end_of_turn>", "<|im_start|>user\nx", "<bos>"),
    (" a  b ", "def f():\n    return 1"),
)  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "byte-level", "deberta", "gemma", "llama3", "qwen", "words"])
def test_the_saved_tokenizer_gives_any_tool_the_tokens_that_the_model_reads(
    name: str, folders: dict[str, Path], templates: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer, kind, template = templates[name]
    assert kind == {"gemma": "chat", "llama3": "chat", "qwen": "chat", "words": "words"}.get(name, "tokens")
    conversation.reward_tokenizer(encoders.load_tokenizer(folders[name]), template).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.pad_token_id != (template.ids["end"][-1] if template.ids["end"] else None)
    for texts in CONVERSATIONS:
        ours = as_tokens(tokenizer, template, texts)
        assert again.apply_chat_template(messages(texts), tokenize=True, return_dict=False) == ours, texts
        rendered = again.apply_chat_template(messages(texts), tokenize=False)
        assert rendered == template.render(texts)
        encoded = again(rendered)
        assert encoded["input_ids"] == ours
        assert not any(encoded.get("token_type_ids", []))
    if kind == "tokens":
        assert again("alpha", "omega")["input_ids"] == as_tokens(tokenizer, template, ("alpha", "omega"))


@pytest.mark.parametrize("name", ["gemma", "llama3", "qwen"])
def test_a_chat_template_of_the_tokenizers_own_is_what_the_model_reads(
    name: str, folders: dict[str, Path], templates: Any
) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(folders[name])
    tokenizer, _, template = templates[name]
    for texts in CONVERSATIONS:
        stripped = [text.strip() for text in texts]
        expected = own.apply_chat_template(messages(stripped), tokenize=True, return_dict=False)
        assert as_tokens(tokenizer, template, texts) == expected


def test_text_around_which_tokens_would_merge_ends_with_a_special_token(templates: Any) -> None:
    # "]\n\n" is one token here, as ".\n\n" is in Llama 3 and Qwen: words alone would not keep an answer apart from it.
    tokenizer, _, template = templates["words"]
    assert len(tokens.token_ids(tokenizer, ["[y]\n\nQuestion"])[0]) < sum(
        map(len, tokens.token_ids(tokenizer, ["[y]", "\n\nQuestion"]))
    )
    assert template.pieces["last_reply"] == "<|endoftext|>\n\nAnswer:\n"
    assert not conversation.find_differences(template, tokenizer)
    bare = {name: piece.replace("<|endoftext|>", "") for name, piece in template.pieces.items()}
    differing = conversation.ConversationTemplate.from_pieces(tokenizer, bare)
    assert conversation.find_differences(differing, tokenizer, [["is it [y]", "a"], ["fine", "b"]]) == [
        "Question:\nis it [y]\n\nAnswer:\na\n\nHow good is this answer:"
    ]


def test_text_of_the_system_and_unusual_turns(folders: dict[str, Path], templates: Any) -> None:
    tokenizer = conversation.reward_tokenizer(encoders.load_tokenizer(folders["bert"]), templates["bert"][2])

    def text(*pairs: tuple[str, Any], **how: Any) -> str:
        chat = [{"role": role, "content": content} for role, content in pairs]
        rendered: str = tokenizer.apply_chat_template(chat, tokenize=False, **how)
        return rendered

    assert text(("system", " be brief "), ("user", "q"), ("assistant", "a")) == "[CLS]be brief \n\nq[SEP]a[SEP]"
    assert text(("system", "s"), ("user", ""), ("assistant", None)) == "[CLS]s[SEP][SEP]"
    assert text(("user", "q")) == "[CLS]q"
    assert (
        text(("user", "q"), ("assistant", "a"), ("user", "r"), add_generation_prompt=True) == "[CLS]q[SEP]a[SEP]r[SEP]"
    )
    assert (
        text(("user", "{{ 7 * 7 }} {% raw %}"), ("assistant", "'\\n'")) == "[CLS]{{ 7 * 7 }} {% raw %}[SEP]'\\n'[SEP]"
    )
    for roles in (("user", "user"), ("assistant",), ("user", "tool"), ("user", "assistant", "system")):
        with pytest.raises(Exception, match="take turns"):
            text(*((role, "x") for role in roles))
    with pytest.raises(Exception, match="text only"):
        text(("user", [{"type": "image"}]))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}",
        '{% for m in messages %}{{ m.content + "\\n\\n" }}{% endfor %}',
        "{{ messages[0].content }} {{ messages[1].content }}",
    ],
)
def test_a_chat_template_that_cannot_be_taken_apart_is_refused(
    template: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "render", render_here)
    tokenizer = encoders.load_tokenizer(folders["qwen"], keep_chat_template=True)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="depends on their texts or number") as refused:
        conversation_template(tokenizer, "chat", "my-model")
    assert "--template words" in str(refused.value) or "or words" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ cycler.__init__.__globals__.os.system('touch ran') }}", "failed: access to attribute"),
        ("{{ 'x' * 10000000000 }}", "failed: out of memory"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not end within 1 s"),
    ],
)
def test_a_hostile_chat_template_does_nothing(
    template: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "MAX_SECONDS", 1 if "within" in reason else 60)
    with pytest.raises(ModelError, match=reason):
        chat_templates.render(template, [messages(["a", "b"])], {}, "my-model")
    assert not list(tmp_path.iterdir())


def test_the_child_process_renders_as_transformers_does() -> None:
    rendered = chat_templates.render(CHATML, [messages(["a", "b"]), messages(["ü", "🙂"])], {"eos_token": "x"}, "")
    assert rendered == render_here(CHATML, [messages(["a", "b"]), messages(["ü", "🙂"])], {}, "")
    assert rendered[1].endswith("user\nü<|im_end|>\n<|im_start|>assistant\n🙂<|im_end|>\n")


def test_auto_says_so_where_a_chat_template_is_not_used(folders: dict[str, Path]) -> None:
    said: list[str] = []

    class Listening(Reporter):
        def warn(self, message: str) -> None:
            said.append(message)

    tokenizer = encoders.load_tokenizer(folders["qwen"], keep_chat_template=True)
    tokenizer.chat_template = "x" * 200_001
    kind, _ = conversation_template(tokenizer, "auto", "my-model", Listening())
    assert kind == "words"
    assert said == ["the tokenizer's chat template has 200,001 characters, at most 200,000 are read; it is not used"]


def test_kinds_that_a_tokenizer_does_not_have_are_refused(folders: dict[str, Path]) -> None:
    tokenizer = encoders.load_tokenizer(folders["words"], keep_chat_template=True)
    with pytest.raises(ModelError, match="has no chat template"):
        conversation_template(tokenizer, "chat", "my-model")
    with pytest.raises(ModelError, match="no special tokens between two texts"):
        conversation_template(tokenizer, "tokens", "my-model")


TURNS = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(TURNS, TURNS, st.integers(24, 200), st.sampled_from(["head", "head-tail"]))
@example([0, 0, 14], [0, 0, 17], 37, "head")
def test_a_conversation_fits_the_budget_and_loses_its_first_turns_first(
    prompt: list[int], answer: list[int], max_length: int, truncation: str
) -> None:
    pieces = {name: (number,) for number, name in enumerate(conversation.PIECES, start=1)}
    template = conversation.ConversationTemplate(dict.fromkeys(pieces, ""), pieces, {})
    mark = np.array([9] if truncation == "head-tail" else [], np.int32)
    packed_by = ConversationPacking(template, max_length, truncation, mark)
    answer += [0] * (len(prompt) - len(answer))
    columns, turns = [], []
    for number, lengths in enumerate((prompt, answer), start=1):
        values = [1000 * number + turn for turn, length in enumerate(lengths) for _ in range(length)]
        columns.append(tokens.Ragged.from_rows([values]))
        turns.append(tokens.Ragged.from_rows([lengths]))
    battles = tokens.TokenisedBattles((*columns, columns[1]), np.array([0]), (*turns, turns[1]))
    ids = PAIR_INPUT.pack(packed_by, battles.fields(0))[0].ids.tolist()
    lengths = [n for turn in itertools.zip_longest(prompt, answer, fillvalue=0) for n in turn]
    total = sum(lengths) + 2 * len(answer) + 1
    assert len(ids) <= packed_by.lengths(battles, (0, 1))[0] == min(total, max_length)
    assert len(ids) == total or len(ids) > max_length - 2 * packing.MIN_TURN_TOKENS - 2
    found = [sum(token == 1000 * (1 + i % 2) + i // 2 for token in ids) for i in range(len(lengths))]
    assert packed_by.kept_tokens(battles, (0, 1))[0].tolist() == [sum(found[::2]), sum(found[1::2])]
    pieces_kept = sum(token in range(1, 1 + len(pieces)) for token in ids)
    first = len(answer) - (pieces_kept - 1) // 2  # turns without text are kept by their pieces alone
    left = lengths[2 * first :]
    share = (max_length - 1 - len(left)) // len(left)
    if found[-1] < lengths[-1] and found[-2] < lengths[-2]:
        assert abs(found[-1] - found[-2]) <= 1 + len(mark)
    assert all(count >= min(length, share) - len(mark) for count, length in zip(found[2 * first :], left, strict=True))
    if first:  # one more turn would have left too little to each text
        more = [min(n, packing.MIN_TURN_TOKENS) for n in lengths[2 * first - 2 :]]
        assert sum(more) + len(more) + 1 > max_length or not any(lengths[2 * first - 2 : 2 * first])
    texts = [token for token in ids if token >= 1000]
    assert texts == sorted(texts, key=lambda token: (token % 1000, token))  # prompts and answers in turn
