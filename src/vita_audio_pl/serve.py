"""`python -m vita_audio_pl.serve`: serve a trained model, with a page to talk to it and OpenAI's protocols."""

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.settings import ServeConfig


def serve(config: ServeConfig) -> None:
    """Serve until stopped.

    Raises:
        UserError: the packages of the server are not installed, the model cannot be loaded, or the port is taken.
    """
    try:
        import fastapi  # noqa: F401
        import openai.types.realtime  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'vita-audio-pl[serve]'") from None
    if config.replicas > 1:
        from vita_audio_pl.serving.replicas import run
    else:
        from vita_audio_pl.serving.process import run
    run(config)


def main() -> None:
    run_entry_point(serve, "serve", ServeConfig, own=("model",))


if __name__ == "__main__":
    main()
