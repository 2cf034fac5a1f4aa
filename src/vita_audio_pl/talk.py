"""`python -m vita_audio_pl.talk`: talk to a server from a terminal, by microphone, recordings or in writing."""

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.settings import TalkConfig


def talk(config: TalkConfig) -> None:
    """Ask the configured questions, or those spoken into the microphone.

    Raises:
        UserError: a package, a file or the server is missing.
    """
    try:
        import websockets  # noqa: F401
    except ImportError:
        raise UserError("talking needs websockets: pip install 'vita-audio-pl[serve]'") from None
    from vita_audio_pl.serving.terminal import run

    run(config)


def main() -> None:
    run_entry_point(talk, "talk", TalkConfig)


if __name__ == "__main__":
    main()
