"""The server: conversations over HTTP and WebSocket with one shared decoder (`python -m vita_audio_pl.serve`)."""
