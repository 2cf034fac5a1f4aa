"""Messages that are spoken while a corpus is prepared: once each, by any voice, with failures counted and keys kept."""

import errno
import json
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures.base import sound
from toy_codec import N_CODES, LoudnessCodec
from toy_corpus import toy_tokenizer

from vita_audio_pl.config.component import Custom
from vita_audio_pl.data.card import card_of, judged_in
from vita_audio_pl.data.left_out import summary
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import Manifest, PreparedSource
from vita_audio_pl.data.readers import AudioRef, LeftOut
from vita_audio_pl.data.recipe import parse_recipe
from vita_audio_pl.data.speaking import kept
from vita_audio_pl.data.speaking.endpoint import Endpoint
from vita_audio_pl.data.speaking.voices import Command, Espeak, decoded
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.choice import judge_settings
from vita_audio_pl.judged_speech import judge_speech
from vita_audio_pl.preparation import tokenize_job
from vita_audio_pl.spoken_world.grammar import grammar
from vita_audio_pl.spoken_world.sentences import SMOKE
from vita_audio_pl.storage.remote_file import Unreachable
from vita_audio_pl.text import AudioCodes

CODEC = {"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES}
RECIPE: dict[str, Any] = {
    "task": "sqa",
    "description": "Questions and answers.",
    "languages": ["en"],
    "licence": "CC0-1.0",
    "home": "made up",
    "layout": "qa.jsonl",
    "reader": {"kind": "jsonl", "files": ["qa.jsonl"], "lines_per_part": 4},
    "speak": ["assistant"],
}
asked: list[str] = []
"""What `Tones` was asked to say."""


class Tones:
    """A person's own voice: half a second of a tone, but for some words; notes what it was asked."""

    def __init__(self, pitch: int = 5):
        self.pitch = pitch

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        asked.append(text)
        if "away" in text:
            raise Unreachable(errno.ENOTCONN, "nobody is there", "the voice")
        if "crash" in text:
            raise ValueError("a bug in it")
        length = 0 if "nothing" in text else 4000
        level = 0.0 if "silence" in text else np.nan if "noise" in text else 0.5
        return (level * np.sin(np.arange(length) / self.pitch)).astype(np.float32), 8000


def tones(**settings: Any) -> Custom:
    return Custom(f"{__name__}.Tones", settings)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes answers, and the questions to them, as a corpus."""

    def write(*answers: str) -> Path:
        asked.clear()
        kept._speakers.clear()  # a process keeps its voices
        rows = [
            [{"role": "user", "content": f"what {n}"}, {"role": "assistant", "content": a}]
            for n, a in enumerate(answers)
        ]
        lines = (json.dumps({"id": f"qa-{n}", "messages": row}) + "\n" for n, row in enumerate(rows))
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw/qa.jsonl").write_text("".join(lines))
        return tmp_path / "raw"

    return write


def job_of(root: Path, voice: Any, recipe: dict[str, Any] = RECIPE) -> TokenizeJob:
    job = tokenize_job(
        parse_recipe("qa", recipe, "qa.yaml"), "train", root=root, shards=root.parent / "shards",
        tokenizer=toy_tokenizer(), codec_folder=None, voice=voice, max_skipped=1.0,
    )  # fmt: skip
    return replace(job, make_codec=LoudnessCodec, codec=CODEC)


def prepared(job: TokenizeJob) -> Manifest:
    manifest = prepare_source(job)
    assert manifest is not None
    return manifest


def written(job: TokenizeJob) -> list[str]:
    """The conversations, with `*` for each sound."""
    source = PreparedSource(job.out)
    text = job.tokenizer.decode
    turns = [turn for n in range(len(source)) for turn in source.read(n).turns]
    return ["".join("*" if isinstance(s, AudioCodes) else text(s.ids) for s in turn.segments) for turn in turns]


def test_answers_are_spoken_once_whatever_is_made_again(corpus: Callable[..., Path]) -> None:
    root = corpus("the red cow", "two cups", "the red cow", "the duck", "two cups")
    job = job_of(root, tones())
    manifest = prepared(job)
    assert sorted(asked) == ["the duck", "the red cow", "two cups"]  # the same text is not spoken twice
    assert written(job)[:4] == ["what 0", "the red cow\n*", "what 1", "two cups\n*"]
    assert manifest.seconds == pytest.approx(2.5) and manifest.samples == 5
    sums = {path.name: path.read_bytes() for path in job.out.glob("*.tar")}
    for path in job.out.iterdir():  # all but the sound is lost
        path.unlink()
    prepared(job)
    assert len(asked) == 3 and sums == {path.name: path.read_bytes() for path in job.out.glob("*.tar")}
    damaged = sorted((root.parent / "shards/.spoken").glob("*/*.flac"))[0]
    damaged.write_bytes(damaged.read_bytes()[:60])
    for path in job.out.iterdir():
        path.unlink()
    prepared(job)
    assert len(asked) == 4 and sums == {path.name: path.read_bytes() for path in job.out.glob("*.tar")}
    other = job_of(root, tones(pitch=7))
    prepared(other)
    assert len(asked) == 7 and not {job.output_name(p) for p in job.reader.parts()} & {
        other.output_name(p) for p in other.reader.parts()
    }


def test_a_voice_that_fails_with_a_text_leaves_that_sample_out(corpus: Callable[..., Path]) -> None:
    root = corpus("the cow", "silence", "nothing", "noise", "crash", "a b " * 400)
    manifest = prepared(job_of(root, tones()))
    assert manifest.report["skipped"] == {"not spoken": 3, "unexpected ValueError": 1} and manifest.samples == 1
    assert manifest.report["filtered"] == {"text too long to speak": 1} and "not spoken 3" in summary(manifest.report)


def test_a_voice_that_never_speaks_stops_the_command(corpus: Callable[..., Path]) -> None:
    root = corpus(*(f"silence {n}" for n in range(30)))
    with pytest.raises(Unreachable, match="20 texts in a row"):
        prepare_source(job_of(root, tones()))
    assert len(asked) < 30 and not (root.parent / "shards/qa/manifest.json").exists()


def test_a_voice_that_is_away_is_not_asked_for_all_that_waits(corpus: Callable[..., Path]) -> None:
    one_part = {**RECIPE, "reader": {"kind": "jsonl", "files": ["qa.jsonl"]}}
    job = job_of(corpus(*(f"away {n}" for n in range(60))), tones(), one_part)
    with pytest.raises(Unreachable, match="nobody is there"):
        prepare_source(job)
    assert 1 <= len(asked) <= job.decoders

    loaded: list[AudioRef] = []

    def slow(audio: AudioRef, sample_rate: int, max_seconds: float) -> np.ndarray:
        loaded.append(audio)
        if len(loaded) > 1:
            time.sleep(0.1)
            return np.ones(4000, np.float32)
        raise Unreachable(errno.ENOTCONN, "nobody is there", "a disk")

    with pytest.raises(Unreachable, match="a disk"):
        prepare_source(replace(job, load_audio=slow))
    assert len(loaded) < 40  # of 60, which were queued


def test_questions_are_spoken_instead_of_written_and_transcripts_are_not(corpus: Callable[..., Path]) -> None:
    root = corpus("the duck")
    heard = [
        {"role": "user", "content": "Convert the speech to text.\n<|audio|>"},
        {"role": "assistant", "content": "the cow"},
    ]
    (root / "a.wav").write_bytes(sound(0.5, 8000))
    with (root / "qa.jsonl").open("a") as file:
        file.write(json.dumps({"messages": heard, "audios": ["a.wav"]}) + "\n")
    job = job_of(root, tones(), {**RECIPE, "speak": {"roles": ["user", "assistant"]}})
    prepared(job)
    assert written(job) == ["*", "the duck\n*", "Convert the speech to text.\n*", "the cow"]
    assert sorted(asked) == ["the duck", "what 0"]  # threads take them in any order


@pytest.mark.parametrize(
    ("speak", "says"),
    [
        ({"tts": {"kind": "command", "command": "sh"}}, "on the command line alone"),
        ({"tts": {"kind": "endpoint", "url": "http://evil/v1"}}, "on the command line alone"),
        ({"tts": {"_target_": "subprocess.Popen", "args": "sh"}}, "on the command line alone"),
        ({"tts": {"kind": "espeak", "_target_": "subprocess.Popen"}}, "on the command line alone"),
        ({"tts": {"kind": "espeak", "command": "sh"}}, "no setting"),
        (["system"], "give a list of user and assistant"),
        ({"role": "user"}, "did you mean 'roles'"),
    ],
)
def test_a_recipe_names_only_voices_that_are_harmless(speak: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_recipe("qa", {**RECIPE, "speak": speak}, "qa.yaml")


def test_a_voice_is_asked_for_where_one_is_needed_and_refused_where_none_is(corpus: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="tts=espeak"):
        job_of(corpus("a"), None)
    with pytest.raises(UserError, match="nothing of 'qa' is spoken"):
        job_of(corpus("a"), tones(), {key: value for key, value in RECIPE.items() if key != "speak"})
    with pytest.raises(UserError, match="for the task sqa"):
        parse_recipe("qa", {**RECIPE, "task": "text"}, "qa.yaml")


def test_what_the_judge_hears_is_in_the_card(corpus: Callable[..., Path]) -> None:
    """espeak-ng speaks the small world's sentences, and pocketsphinx, which knows its grammar, hears them."""
    said = ("the girl has four cups", "the big red cow lives in the barn", "the teacher sees the small dolphin")
    root = corpus(*said)
    espeak = {"kind": "espeak", "name": "en-us+f2"}
    job = job_of(root, None, {**RECIPE, "speak": {"tts": espeak}})
    manifest = prepared(job)
    assert "nobody has listened" in (job.out / "card.md").read_text()
    (root / "world.jsgf").write_text(grammar(SMOKE))
    judge = judge_settings("pocketsphinx", str(root / "world.jsgf"))
    judged = judge_speech(job, manifest, judge, 10)
    assert judged is not None and judged["messages"] == 3 and judged["wer"] <= 0.2
    card = json.loads((job.out / "card.json").read_text())["spoken"]
    assert card["voice"].items() >= espeak.items() and card["judged"]["wer"] == judged["wer"]
    assert "by the transcripts of pocketsphinx" in (job.out / "card.md").read_text()
    (job.out / "card.md").unlink()
    assert judge_speech(job, manifest, judge, 10) == judged == judged_in(job.out, manifest)
    assert "by the transcripts of pocketsphinx" in (job.out / "card.md").read_text()
    (job.out / "manifest.json").unlink()
    assert prepared(job) == manifest  # finished once more, from the same shards
    assert "by the transcripts of pocketsphinx" in (job.out / "card.md").read_text()
    assert card_of(manifest, judged=judged_in(job.out, replace(manifest, index_crc=1))).spoken["judged"] is None


# ---------------------------------------------------------------------------------------------------- servers and programs


class _Server(BaseHTTPRequestHandler):
    """Answers `/v1/audio/speech` as the text says."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen: list[Any] = self.server.seen  # type: ignore[attr-defined]
        seen.append((self.path, self.headers.get("Authorization"), body))
        text, times = body["input"], sum(b["input"] == body["input"] for _, _, b in seen)
        status = next((int(code) for code in re.findall(r"status (\d+)", text)), 200)
        if "once" in text and times > 1:
            status = 200
        data = sound(0.5, 24_000) if status == 200 else f"no, {self.headers.get('Authorization')}".encode()
        self.send_response(status)
        if status == 307:
            self.send_header("Location", f"http://localhost:{self.server.server_port}/stolen")  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if "cut" in text and times == 1 else data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("localhost", 0), _Server)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def endpoint(server: ThreadingHTTPServer, **settings: Any) -> Endpoint:
    made = Endpoint(url=f"http://localhost:{server.server_port}/v1", model="tts", voice="anna", **settings)
    made.check()
    return made


def test_a_server_speaks_and_its_key_is_written_nowhere(
    corpus: Callable[..., Path], server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTS_KEY", "sk-very-secret\r\n")  # as it comes out of a file
    root = corpus("the cow", "status 400", "the duck")
    job = job_of(root, endpoint(server, key_variable="TTS_KEY"))
    manifest = prepared(job)
    assert manifest.samples == 2 and manifest.report["skipped"] == {"not spoken": 1}
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/audio/speech", "Bearer sk-very-secret")
    assert body == {"model": "tts", "voice": "anna", "input": body["input"], "response_format": "wav"}
    files = [path for path in root.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if b"very-secret" in path.read_bytes()]
    assert "400" in (job.out / "skipped.jsonl").read_text()
    for key in ("sk-very\n-secret", "sk-very\u2028-secret"):
        monkeypatch.setenv("TTS_KEY", key)
        with pytest.raises(UserError, match="TTS_KEY holds a line break"):
            endpoint(server, key_variable="TTS_KEY")
        with pytest.raises(Unreachable, match="cannot be sent") as told:  # of a worker, whose environment is another
            Endpoint(url=f"http://localhost:{server.server_port}/v1", key_variable="TTS_KEY", tries=1).build().speak(
                "a"
            )
        assert "-secret" not in "".join(traceback.format_exception(told.value, limit=0))


def test_a_server_is_asked_again_while_that_may_help(server: ThreadingHTTPServer) -> None:
    waits: list[float] = []
    voice = endpoint(server, tries=3).build()
    voice._sleep = waits.append  # type: ignore[attr-defined]
    for text in ("once status 429", "once status 503", "cut"):
        assert len(voice.speak(text)[0]) == 12_000
    assert waits == [0.5, 0.5, 0.5]
    for text in ("status 500", "status 422"):  # it is there, and cannot say this
        with pytest.raises(LeftOut, match=text.removeprefix("status ")):
            voice.speak(text)
    for text in ("status 503", "status 401", "status 404", "status 307"):  # nobody could say anything
        with pytest.raises(Unreachable, match=text.removeprefix("status ")):
            voice.speak(text)
    assert {path for path, _, _ in server.seen} == {"/v1/audio/speech"}  # no redirect was followed
    server.seen.clear()
    with pytest.raises(UserError, match="key_variable"):
        endpoint(server, key_variable="NO_SUCH_KEY")
    with pytest.raises(UserError, match="name or a key"):
        Endpoint(url="http://anna:secret@localhost/v1").check()


def test_a_server_that_is_away_stops_the_command(server: ThreadingHTTPServer) -> None:
    away = Endpoint(url="http://localhost:1/v1", tries=1).build()
    with pytest.raises(Unreachable, match="refused"):
        away.speak("a")


@pytest.mark.parametrize("to", ["{output}", "-"])
def test_a_program_speaks(to: str, tmp_path: Path) -> None:
    program = tmp_path / "say.py"
    program.write_text(
        "import io, sys, soundfile, numpy\n"
        "text = sys.stdin.read()\n"
        "if 'fail' in text: sys.exit('no such word')\n"
        "wave = numpy.full(800 * len(text), 0.25, 'float32')\n"
        "file = io.BytesIO()\n"
        "soundfile.write(file, wave, 8000, format='WAV') if 'mute' not in text else None\n"
        "(sys.stdout.buffer if sys.argv[1] == '-' else open(sys.argv[1], 'wb')).write(file.getvalue())\n"
    )
    settings = Command(command=f"{sys.executable} {shlex.quote(str(program))} {to}", name="piper")
    settings.check()
    wave, rate = settings.build().speak("你好 \"'$(x)")
    assert rate == 8000 and len(wave) == 800 * len("你好 \"'$(x)")
    for text, says in (("fail", "status 1: no such word"), ("mute", "gave no sound")):
        with pytest.raises(LeftOut, match=says):
            settings.build().speak(text)
    assert settings.facts()["name"] == "piper" and str(program) not in json.dumps(settings.facts())
    with pytest.raises(UserError, match="no program 'nowhere-to-be-found'"):
        Command(command="nowhere-to-be-found -x").check()


def test_sound_that_is_streamed_without_its_length_is_whole() -> None:
    for unknown in (0, 0xFFFFFFFF):
        data = bytearray(sound(0.5, 8000))
        data[40:44] = unknown.to_bytes(4, "little")
        assert len(decoded(bytes(data), "a server")[0]) == 4000
    flac = bytearray(sound(0.5, 8000, "FLAC"))
    flac[21] &= 0xF0  # the 36 bits of the number of samples, as a stream leaves them
    flac[22:26] = bytes(4)
    assert len(decoded(bytes(flac), "a server")[0]) == 4000
    for data, says in ((b"<html>", "no sound"), (sound(0.5, 8000)[:4000], "3956 bytes of sound of 8000")):
        with pytest.raises(LeftOut, match=says):
            decoded(data, "a server")


def test_espeak_speaks_any_language_and_refuses_unknown_voices() -> None:
    facts = Espeak(name="cmn").facts()
    assert facts["version"] and len(Espeak(name="cmn").build().speak("你好。今天 <b>很好</b>; -v")[0]) > 16_000
    with pytest.raises(LeftOut, match="nothing to say"):
        Espeak().build().speak("...")
    with pytest.raises(UserError, match="nowhere"):
        Espeak(name="nowhere").facts()
