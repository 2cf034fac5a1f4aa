"""Configuration of other projects is data: tags, references, swelling documents."""

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json, read_tagged_yaml


def written(tmp_path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_tags_are_dropped_and_references_followed(tmp_path):
    path = written(
        tmp_path,
        "seed: !apply:torch.manual_seed [1986]\n"
        "rate: 22050\n"
        "pair: [!ref <rate>, 1e-06]\n"
        "net: !new:some.module.Net\n    inner: !name:other.Thing\n        rate: !ref <rate>\n",
    )
    values = read_tagged_yaml(path)
    assert values["net"] == {"inner": {"rate": 22_050}} and values["seed"] == [1986]
    assert values["pair"][0] == 22_050 and Fields({"x": values["pair"][1]}, "here").number("x") == 1e-6


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("a: !ref <b>\nb: !ref <a>\n", "leads back to itself"),
        ("a: !ref <c>\n", "does not have"),
        ("a: &x [1, 1]\nb: [*x, *x]\n", "aliases"),
        ("a: [1\n", "not YAML"),
        ("- 1\n", "mapping at its top"),
        ("a: " + "[" * 500, "not YAML"),
        ("a: " + "x" * (1 << 20), "too large"),
    ],
)
def test_what_is_no_plain_configuration_is_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_tagged_yaml(written(tmp_path, text))


def test_references_cannot_swell(tmp_path):
    lines = ["k0: [1, 1]"] + [f"k{n}: [{', '.join(f'!ref <k{n - 1}>' for _ in range(9))}]" for n in range(1, 30)]
    assert len(read_tagged_yaml(written(tmp_path, "\n".join(lines)))["k29"]) == 9


def test_json_must_be_an_object(tmp_path):
    path = tmp_path / "config.json"
    for text in ("[1]", "{", "\x00"):
        path.write_text(text)
        with pytest.raises(UserError, match="config.json"):
            read_json(path)


@pytest.mark.parametrize("value", [True, 0, 1.5, "3", None, 10**8])
def test_a_whole_number_is_a_whole_number(value):
    with pytest.raises(UserError, match="here: size is"):
        Fields({"size": value}, "here").integer("size")
