"""The package's front door."""

import vita_audio_pl


def test_every_public_name_is_where_the_package_says():
    for name in vita_audio_pl.__all__:
        assert getattr(vita_audio_pl, name).__name__ == name
