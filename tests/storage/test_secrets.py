"""Credentials leave URLs before anything is written, and nothing else changes."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio_pl.storage.secrets import command_line_without_credentials, without_credentials


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("https://name:SECRET@host:8080/data/a.tar", "https://host:8080/data/a.tar"),
        ("https://SECRET@github.com/x", "https://github.com/x"),
        ("http://name:SE/CRET@host/data", "http://host/data"),
        ("http://name:SE@CRET@host/data", "http://host/data"),
        ("http:/name:SECRET@host/data", "http:/host/data"),
        ("simplecache::s3://key:SECRET@bucket/x", "simplecache::s3://bucket/x"),
        ("https://b.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Signature=SECRET", "https://b.s3.amazonaws.com/x"),
        ("https://a.blob.core.windows.net/c?sv=2024&se=2026&sig=SECRET%3D", "https://a.blob.core.windows.net/c"),
        ("https://h/x?access_token=SECRET#part", "https://h/x"),
        ("https://h/x#token=SECRET", "https://h/x"),
        ("cannot read https://u:SECRET@h/x?sig=SECRET: 403 (no access)", "cannot read https://h/x: 403 (no access)"),
        ("data.shards='https://u:SECRET@h/x', seed=1", "data.shards='https://h/x', seed=1"),
        ("[https://h/x?token=SECRET, https://h/y]", "[https://h/x, https://h/y]"),
    ],
)
def test_what_opens_a_door_is_taken_out(text, cleaned):
    assert without_credentials(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/path@v2?page=3&lang=en#part",
        "s3://bucket/prefix/shard-00001.tar",
        "me@example.org said: see http://host/x, then mail you@example.org",
        "/data/a:b@c/x?token=kept",
        "data/speech.jsonl:12: 'token=5' is no setting",
        "C:/users/me/x",
    ],
)
def test_what_holds_no_credentials_stays_as_it_is(text):
    assert without_credentials(text) == text


def test_settings_are_gone_through_whatever_their_shape():
    url, plain = "http://u:SECRET@h/x", "http://h/x"
    values = {"a": [url, (url, 1)], "b": {url: None}, "c": 2.5, "d": True, "e": None}
    assert without_credentials(values) == {"a": [plain, (plain, 1)], "b": {plain: None}, "c": 2.5, "d": True, "e": None}
    assert type(without_credentials((url,))) is tuple


part = st.text("abcXYZ019-._~%!$'()*+=&;,", min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    name=part, tail=part, path=part, token=st.sampled_from(["sig", "X-Amz-Signature", "token", "api_key", "password"])
)
def test_no_password_survives_whatever_it_is_made_of(name, tail, path, token):
    secret = f"SECRET{tail}"
    for url in (f"https://{name}:{secret}@host/{path}", f"s3://host/{path}?a=1&{token}=SECRET{tail.split('&')[0]}"):
        for text in (url, f"cannot open {url}", {"data": {"shards": url}}):
            assert "SECRET" not in str(without_credentials(text))


def test_a_library_that_writes_down_the_command_line_sees_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "data.shards=https://u:SECRET@h/x"])
    with command_line_without_credentials():
        assert sys.argv == ["train", "data.shards=https://h/x"]
    assert sys.argv[1] == "data.shards=https://u:SECRET@h/x"
