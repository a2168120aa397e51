"""The tokenizer in GGUF: which pre-tokenizer it is, tokens and their types, merges or scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import build_tiny_llama

from giraffe_cli.errors import InvalidInput
from giraffe_cli.export.gguf_pretoken import adds_space_prefix, byte_level_pre
from giraffe_cli.export.gguf_tokenizer import TokenType, Vocabulary, read_vocabulary
from giraffe_cli.gguf_pipelines import LLAMA_3, QWEN_2
from giraffe_cli.model.loading import load_tokenizer
from giraffe_cli.rundir import read_json, write_json

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT_2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}


def split(regex: str, **changes) -> dict:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False, **changes}


def sequence(*steps: dict, key: str = "pretokenizers") -> dict:
    return {"type": "Sequence", key: list(steps)}


def byte_level(pre_tokenizer: dict | None, normalizer: dict | None = None, **model) -> dict:
    return {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "ignore_merges": False, **model},
    }


def change(folder: Path, source: Path, **parts) -> Path:
    """`source` with parts of its `tokenizer.json` replaced; `model=` is merged in."""
    shutil.copytree(source, folder)
    value = read_json(folder / "tokenizer.json")
    model = {**value["model"], **parts.pop("model", {})}
    write_json(folder / "tokenizer.json", {**value, **parts, "model": model})
    return folder


def vocabulary(folder: Path, vocab_size: int = 384) -> Vocabulary:
    return read_vocabulary(folder, read_json(folder / "config.json"), vocab_size)


# ── which pre-tokenizer ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (byte_level(GPT_2), "gpt-2"),
        (byte_level(sequence(DIGITS, GPT_2)), "smollm"),
        (byte_level(sequence(split(LLAMA_3), BYTES), ignore_merges=True), "llama-bpe"),
        (byte_level(sequence(split(LLAMA_3), BYTES)), "smaug-bpe"),
        (byte_level(sequence(split(QWEN_2), BYTES)), "qwen2"),
        (byte_level(sequence(split(QWEN_2), BYTES), {"type": "NFC"}), "qwen2"),
        (byte_level(sequence(sequence(DIGITS), GPT_2)), "smollm"),
    ],
)
def test_known_pipelines_have_llamacpps_names(value, name):
    assert byte_level_pre(value) == name


def test_llama_3s_expression_is_the_published_one():
    """As in Meta-Llama-3's tokenizer.json, quoted in llama.cpp's llama-vocab.cpp."""
    assert LLAMA_3 == (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (byte_level(sequence(split(r"\w+"), BYTES)), r"\\w+"),
        (byte_level({**GPT_2, "add_prefix_space": True}), "add_prefix_space"),
        (byte_level(sequence({"type": "Digits", "individual_digits": False}, GPT_2)), "Digits"),
        (byte_level(sequence(split(LLAMA_3, behavior="Removed"), BYTES)), "Removed"),
        (byte_level(sequence(split(LLAMA_3, invert=True), BYTES)), "invert"),
        (byte_level(GPT_2, {"type": "Lowercase"}), "Lowercase"),
        (byte_level(GPT_2, continuing_subword_prefix="##"), "##"),
        (byte_level(GPT_2, ignore_merges=True), "ByteLevel"),
    ],
)
def test_unknown_pipelines_are_refused_by_name(value, named):
    with pytest.raises(InvalidInput, match="has no counterpart known in llama.cpp") as caught:
        byte_level_pre(value)
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (sequence(PREPEND, REPLACE, key="normalizers"), None, True),
        (REPLACE, None, False),
        (None, METASPACE, True),
        (None, {**METASPACE, "prepend_scheme": "never"}, False),
    ],
)
def test_three_spellings_of_the_leading_space(normalizer, pre_tokenizer, prefix):
    value = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    assert adds_space_prefix(value) is prefix


def test_other_spellings_are_refused():
    for pre_tokenizer in ({**METASPACE, "split": True}, DIGITS):
        with pytest.raises(InvalidInput, match="normalizer and pre_tokenizer"):
            adds_space_prefix({"normalizer": None, "pre_tokenizer": pre_tokenizer})


# ── byte-level ───────────────────────────────────────────────────────────────────────────────


def test_a_byte_level_vocabulary(tiny_llama):
    found = vocabulary(tiny_llama)
    value = read_json(tiny_llama / "tokenizer.json")
    assert (found.model, found.pre, found.scores) == ("gpt2", "gpt-2", None)
    assert found.tokens[:3] == ["<s>", "</s>", "!"]
    assert found.types[:3] == [TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL]
    assert {text: n for n, text in enumerate(found.tokens)} == value["model"]["vocab"]
    assert found.merges == [" ".join(pair) for pair in value["model"]["merges"]]
    assert found.special_ids == {"bos": 0, "eos": 1}
    assert (found.add_bos, found.add_eos) == (True, False)
    assert (found.chat_template, found.warnings) == (None, [])


def test_calfs_digits_stand_alone():
    folder = Path(__file__).parent.parent / "giraffe_cli" / "calf"
    found = read_vocabulary(folder, read_json(folder / "config.json"), 2048)
    assert (found.pre, found.add_bos) == ("smollm", True)
    assert found.tokens[:2] == ["<|begin|>", "<|end|>"]


def test_rows_without_a_token_are_unused(tiny_llama):
    found = vocabulary(tiny_llama, 386)
    assert found.tokens[384:] == ["[PAD384]", "[PAD385]"]
    assert found.types[384:] == [TokenType.UNUSED] * 2


def test_added_tokens_keep_their_kind(tmp_path, tiny_llama):
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    value = read_json(tiny_llama / "tokenizer.json")
    added = [
        *value["added_tokens"],
        {"id": 384, "content": "<|user|>", "special": True, **common},
        {"id": 385, "content": "<mask>", "special": False, **common, "lstrip": True},
    ]
    found = vocabulary(change(tmp_path / "m", tiny_llama, added_tokens=added), 386)
    assert found.tokens[384:] == ["<|user|>", "<mask>"]
    assert found.types[384:] == [TokenType.CONTROL, TokenType.USER_DEFINED]
    assert found.warnings == [
        "llama.cpp does not strip the spaces around <mask> as the tokenizer does"
    ]


def test_kinds_of_tokens_have_llamacpps_numbers():
    from gguf import TokenType as Theirs

    assert {kind.name: kind.value for kind in TokenType} == {k.name: k.value for k in Theirs}


def test_an_end_token_that_also_stands_for_the_unknown_stays_a_control_token(tmp_path, tiny_llama):
    """GPT-2's and SmolLM's `<|endoftext|>` is `unk_token` as well."""
    folder = change(tmp_path / "m", tiny_llama)
    settings = read_json(folder / "tokenizer_config.json") | {"unk_token": "</s>"}
    write_json(folder / "tokenizer_config.json", settings)
    found = vocabulary(folder)
    assert found.special_ids == {"bos": 0, "eos": 1, "unk": 1}
    assert found.types[:3] == [TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL]


def test_a_token_that_would_stand_twice_is_named(tmp_path, tiny_llama):
    """Row 385 has no token, and its filler is what the token of row 384 is called."""
    token = {"id": 384, "content": "[PAD385]", "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    added = [*read_json(tiny_llama / "tokenizer.json")["added_tokens"], token]
    folder = change(tmp_path / "m", tiny_llama, added_tokens=added)
    with pytest.raises(InvalidInput, match=r"has '\[PAD385\]' twice, which llama.cpp refuses"):
        vocabulary(folder, 386)


def test_a_composing_normaliser_is_said_to_be_left_out(tmp_path, tiny_llama):
    folder = change(
        tmp_path / "m",
        tiny_llama,
        normalizer={"type": "NFC"},
        pre_tokenizer=sequence(split(QWEN_2), BYTES),
    )
    found = vocabulary(folder)
    assert found.pre == "qwen2"
    assert found.warnings == [
        "llama.cpp does not bring text into Unicode's NFC form; the tokenizer does"
    ]


def test_what_is_added_to_a_text_is_found_by_asking(tmp_path, tiny_llama):
    nothing = change(tmp_path / "nothing", tiny_llama, post_processor=None)
    assert (vocabulary(nothing).add_bos, vocabulary(nothing).add_eos) == (False, False)
    tokens = {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in (("<s>", 0), ("</s>", 1))}

    def template(*names: str) -> dict:
        single = [
            {"Sequence": {"id": "A", "type_id": 0}}
            if name == "A"
            else {"SpecialToken": {"id": name, "type_id": 0}}
            for name in names
        ]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        kind = {"type": "TemplateProcessing", "special_tokens": tokens}
        return {**kind, "single": single, "pair": pair}

    both = change(tmp_path / "both", tiny_llama, post_processor=template("<s>", "A", "</s>"))
    assert (vocabulary(both).add_bos, vocabulary(both).add_eos) == (True, True)
    odd = change(tmp_path / "odd", tiny_llama, post_processor=template("</s>", "A"))
    with pytest.raises(InvalidInput, match="GGUF can only add the beginning and the end token"):
        vocabulary(odd)


def test_the_first_of_several_end_tokens_and_the_chat_template(tmp_path, tiny_llama):
    folder = change(tmp_path / "m", tiny_llama)
    settings = read_json(folder / "tokenizer_config.json")
    del settings["eos_token"]
    settings["chat_template"] = [
        {"name": "tool_use", "template": "{{ tools }}"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    config = {**read_json(folder / "config.json"), "eos_token_id": [5, 6], "pad_token_id": 7}
    (folder / "generation_config.json").unlink()
    found = read_vocabulary(folder, config, 384)
    assert found.special_ids == {"bos": 0, "eos": 5, "eot": 6, "pad": 7}
    assert found.chat_template == "{{ messages[0].content }}"
    none = read_vocabulary(folder, {**config, "pad_token_id": -1}, 384)  # as Llama 1 says it
    assert none.special_ids == {"bos": 0, "eos": 5, "eot": 6}


def test_ends_that_generation_names_beside_the_tokenizers_are_kept(tmp_path, tiny_llama):
    """llama.cpp knows `<|eot_id|>` by name; of the two others a GGUF holds one, and one is told."""
    folder = change(tmp_path / "m", tiny_llama)
    names = ["<|eot_id|>", "<stop>", "<halt>"]
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.save_pretrained(folder)
    eot, stop, halt = tokenizer.convert_tokens_to_ids(names)
    write_json(folder / "generation_config.json", {"eos_token_id": [1, eot, stop, halt]})
    found = vocabulary(folder, 400)
    assert (found.special_ids["eos"], found.special_ids["eot"]) == (1, stop)
    assert found.warnings == ["llama.cpp does not end at <halt>: a GGUF names two end tokens"]


def test_other_models_are_named(tmp_path, tiny_llama):
    words = change(tmp_path / "words", tiny_llama)
    value = read_json(words / "tokenizer.json")
    model = {"type": "WordLevel", "vocab": value["model"]["vocab"], "unk_token": "!"}
    write_json(words / "tokenizer.json", {**value, "model": model})
    with pytest.raises(InvalidInput, match="is WordLevel, and GGUF export knows BPE"):
        vocabulary(words)
    characters = change(tmp_path / "characters", tiny_llama, pre_tokenizer=DIGITS)
    with pytest.raises(InvalidInput, match="without byte fallback"):
        vocabulary(characters)


# ── sentencepiece-like ───────────────────────────────────────────────────────────────────────

PIECES = ["▁▁", "▁▁▁▁", "▁▁▁", "ab", "▁ab", "▁a", "abc", "bc"]
"""In order of rank, after <unk>, <s>, </s>, 256 bytes and five characters."""


def sentencepiece_like(folder: Path, merges: list[tuple[str, str]] | None = None) -> Path:
    """A tiny Llama whose tokenizer is built as transformers converts sentencepiece: for each
    piece, every pair of pieces that makes it; runs of spaces last and together."""
    build_tiny_llama(folder)
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *"▁abcd", *PIECES]
    vocab = {text: n for n, text in enumerate(texts)}
    if merges is None:
        words = [p for p in PIECES if set(p) != {"▁"}]
        merges = [pair for piece in words for pair in pairs_of(piece, vocab)]
        runs = [pair for piece in PIECES if set(piece) == {"▁"} for pair in pairs_of(piece, vocab)]
        merges += sorted(runs, key=lambda pair: (-len(pair[0]), -len(pair[1])))
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    value = read_json(folder / "tokenizer.json")
    value |= {
        "added_tokens": [
            {"id": n, "content": texts[n], "special": True, **common} for n in range(3)
        ],
        "normalizer": sequence(PREPEND, REPLACE, key="normalizers"),
        "pre_tokenizer": None,
        "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }
    write_json(folder / "tokenizer.json", value)
    settings = read_json(folder / "tokenizer_config.json") | {"unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def pairs_of(piece: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    cuts = range(1, len(piece))
    return [(piece[:n], piece[n:]) for n in cuts if piece[:n] in vocab and piece[n:] in vocab]


def test_a_sentencepiece_like_vocabulary(tmp_path):
    found = vocabulary(sentencepiece_like(tmp_path / "m"))
    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert (found.add_bos, found.add_space_prefix, found.warnings) == (True, True, [])
    assert found.types[:4] == [
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.BYTE,
    ]
    assert found.types[259:264] == [TokenType.NORMAL] * 5
    assert found.special_ids == {"bos": 1, "eos": 2, "unk": 0}


def test_scores_order_the_pieces_as_the_merges_do(tmp_path):
    found = vocabulary(sentencepiece_like(tmp_path / "m"))
    score = dict(zip(found.tokens, found.scores or [], strict=True))
    ordered = ["ab", "▁ab", "▁a", "abc", "bc", "▁▁▁▁"]
    assert sorted(ordered, key=score.__getitem__, reverse=True) == ordered
    assert score["▁▁▁"] == score["▁▁▁▁"] > score["▁▁"]  # the merges of the two alternate
    assert score["a"] == score["<s>"] == min(score.values())


def test_alternating_merges_of_other_pieces_are_refused(tmp_path):
    merges = [("a", "b"), ("b", "c"), ("▁", "ab"), ("a", "bc"), ("▁a", "b"), ("ab", "c")]
    folder = sentencepiece_like(tmp_path / "m", [*merges, ("▁", "a")])
    with pytest.raises(InvalidInput, match="merges of '▁ab' and 'abc' alternate"):
        vocabulary(folder)


def test_pairs_that_only_llamacpp_would_merge_are_counted(tmp_path):
    folder = sentencepiece_like(tmp_path / "m", [("a", "b"), ("▁", "ab"), ("ab", "c")])
    warnings = vocabulary(folder).warnings
    assert len(warnings) == 1
    assert "pairs of tokens that the tokenizer's merges leave apart" in warnings[0]


def test_merges_in_the_old_spelling(tmp_path, tiny_llama):
    value = read_json(tiny_llama / "tokenizer.json")
    old = [" ".join(pair) for pair in value["model"]["merges"]]
    folder = change(tmp_path / "m", tiny_llama, model={"merges": old})
    assert vocabulary(folder).merges == old == vocabulary(tiny_llama).merges


def test_a_metaspace_step_is_said_to_differ(tmp_path):
    folder = sentencepiece_like(tmp_path / "m")
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    value |= {"normalizer": None, "pre_tokenizer": METASPACE}
    write_json(folder / "tokenizer.json", value)
    found = vocabulary(folder)
    assert found.add_space_prefix is True
    assert "llama.cpp puts a space before every text" in found.warnings[0]
    value["pre_tokenizer"] = {**METASPACE, "prepend_scheme": "never"}
    write_json(folder / "tokenizer.json", value)
    found = vocabulary(folder)
    assert (found.add_space_prefix, found.warnings) == (False, [])


def test_a_sentencepiece_like_vocabulary_without_an_unknown_token(tmp_path):
    folder = sentencepiece_like(tmp_path / "m")
    settings = read_json(folder / "tokenizer_config.json")
    del settings["unk_token"]
    write_json(folder / "tokenizer_config.json", settings)
    found = vocabulary(folder)
    assert found.special_ids == {"bos": 1, "eos": 2}
    assert found.types[:4] == [*[TokenType.CONTROL] * 3, TokenType.BYTE]
