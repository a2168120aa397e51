"""LongRoPE factors: the forms in which they are given, and what is wrong with a wrong one."""

from __future__ import annotations

import json

import pytest

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import Head, make_strategy, make_table

FOUR_PAIRS = Head(8, 1e4, 100, 800)
FACTORS = [1.0, 1.5, 6.0, 8.0]
SHORT = [1.0, 1.0, 1.0, 1.0]

FORMS = {
    "list.json": json.dumps(FACTORS),
    "factors.json": json.dumps({"long_factor": FACTORS}),
    "config.json": json.dumps(
        {
            "model_type": "llama",
            "rope_parameters": {
                "rope_type": "longrope",
                "long_factor": FACTORS,
                "short_factor": SHORT,
            },
        }
    ),
    "v4.json": json.dumps(
        {"rope_scaling": {"type": "su", "long_factor": FACTORS}, "rope_parameters": None}
    ),
    # transformers 5 reads `rope_scaling` where both are there.
    "both.json": json.dumps(
        {"rope_scaling": {"long_factor": FACTORS}, "rope_parameters": {"long_factor": SHORT}}
    ),
    "one_row.csv": "1,1.5,6,8\n",
    "row_per_layer.csv": "1,1.5,6,8\n1,1.5,6,8\n1,1.5,6,8\n",
    "column.txt": "1\n1.5\n6\n8\n",
    "wrapped.txt": "# after 40 generations\n1.0 1.5\n6.0 8.0\n",
}


@pytest.mark.parametrize(
    ("beside", "attention"),
    [
        ({"attention_factor": 1.25}, 1.25),
        ({"short_mscale": 1.24, "long_mscale": 1.24}, 1.24),  # Phi-3.5-MoE's spelling
        ({"attention_factor": 1.25, "long_mscale": 1.24}, 1.25),
    ],
)
def test_the_attention_factor_beside_them_counts(tmp_path, beside, attention):
    file = tmp_path / "config.json"
    file.write_text("\ufeff" + json.dumps({"rope_scaling": {"long_factor": FACTORS, **beside}}))
    table = make_table("longrope", {"factors": str(file)}, FOUR_PAIRS)
    assert table.attention_factor == attention


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers(tmp_path, form):
    file = tmp_path / form
    file.write_text(FORMS[form])
    table = make_table("longrope", {"factors": str(file)}, FOUR_PAIRS)
    assert table.rope_parameters["long_factor"] == pytest.approx(FACTORS, rel=1e-15)
    assert table.rope_parameters["short_factor"] == table.rope_parameters["long_factor"]
    assert table == make_table("longrope", {"factors": FACTORS}, FOUR_PAIRS)


def test_the_numbers_are_kept_when_the_file_goes(tmp_path):
    file = tmp_path / "factors.csv"
    file.write_text(FORMS["one_row.csv"])
    strategy = make_strategy("longrope", {"factors": str(file)})
    file.unlink()
    assert strategy.factors == (1.0, 1.5, 6.0, 8.0)
    assert strategy.inv_freq(FOUR_PAIRS).tolist() == pytest.approx(
        [1, 0.1 / 1.5, 0.01 / 6, 1.25e-4]
    )


def test_a_directory_of_giraffes_own_gives_its_factors_again(tmp_path):
    table = make_table("longrope", {"factors": FACTORS}, FOUR_PAIRS)
    (tmp_path / "rope.json").write_text(json.dumps(table.to_json()))
    again = make_table("longrope", {"factors": str(tmp_path / "rope.json")}, FOUR_PAIRS)
    assert (again.inv_freq, again.attention_factor) == (table.inv_freq, table.attention_factor)


def test_the_attention_factor_beside_them_is_taken_unless_another_is_given(tmp_path):
    file = tmp_path / "factors.json"
    file.write_text(json.dumps({"long_factor": FACTORS, "attention_factor": 1.25}))
    assert make_table("longrope", {"factors": str(file)}, FOUR_PAIRS).attention_factor == 1.25
    own = {"factors": str(file), "attention": 1.5}
    assert make_table("longrope", own, FOUR_PAIRS).attention_factor == 1.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rope_parameters": {"rope_type": "yarn"}}', "has no long_factor at its top, in rope_"),
        ('{"rope_scaling": "none"}', "has no long_factor at its top, in rope_"),
        ('{"long_factor": 4.0}', "has no long_factor at its top, in rope_"),
        ("[1.0, 1.5", "is not JSON"),
        ("1.0,fast,6,8", "could not convert string to float: 'fast'"),
        ('["1.0", "1.5", "6", "8"]', "must be a list of numbers"),
        ("[1.0, 1.5, NaN, 8]", r"factors\[2\] is nan, must lie in \[0\.1, 1e\+12\]"),
        ("1 1.5 6 inf", r"factors\[3\] is inf, must lie in \[0\.1, 1e\+12\]"),
        ("1 1.5 0 8", r"factors\[2\] is 0\.0, must lie in \[0\.1, 1e\+12\]"),
        ("1 1.5 -6 8", r"factors\[2\] is -6\.0, must lie in"),
        ("", "longrope has no factors"),
        ("1 1.5 6", "longrope has 3 factors, needs head_dim/2 = 4"),
        ("1,1.5,6,8\n1,1.5,7,8", "longrope has 8 factors, needs head_dim/2 = 4"),
        ("80 6 1.5 1", "factors 80, 6 make pair 1 turn faster than pair 0"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    file = tmp_path / "factors"
    file.write_text(content)
    with pytest.raises(InvalidInput, match=message):
        make_table("longrope", {"factors": str(file)}, FOUR_PAIRS)


def test_no_factors_says_what_to_give(tmp_path):
    with pytest.raises(InvalidInput, match="longrope has no factors") as caught:
        make_strategy("longrope", {})
    assert "config.json with long_factor" in caught.value.hint
    for missing in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(InvalidInput, match=f"{missing} cannot be read") as caught:
            make_strategy("longrope", {"factors": str(missing)})
        assert "JSON list" in caught.value.hint
    (tmp_path / "model.safetensors").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read"):
        make_strategy("longrope", {"factors": str(tmp_path / "model.safetensors")})
