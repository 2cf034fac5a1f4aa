"""A server on loopback with the small world's codec and tokenizer, and a model of random weights that speaks a lot."""

import copy
import json
import shutil
import threading

import pytest
import torch
from transformers import Qwen2Config

from tests.patience import wait_until
from vita_audio_pl.codecs import MelVQ
from vita_audio_pl.inference import Runtime
from vita_audio_pl.inference.loading import LoadedModel
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.serving.engine import Engine
from vita_audio_pl.serving.links import ThreadLink
from vita_audio_pl.serving.process import DrainingServer, load_service, server_config
from vita_audio_pl.serving.service import Service
from vita_audio_pl.serving.settings import LimitsConfig, ServeConfig
from vita_audio_pl.text.tokenizer import TextTokenizer

LONGEST = 48


@pytest.fixture(scope="session")
def codec(smoke_world):
    return MelVQ.load(smoke_world / "codec")


@pytest.fixture(scope="session")
def loaded(smoke_world, codec, random_model):
    loaded = random_model(codec, smoke_world / "codec")
    vars(loaded)["runtime"] = Runtime(
        copy.deepcopy(loaded.model), release=True
    )  # the weights are saved, and compared with
    return loaded


@pytest.fixture(scope="session")
def random_model(smoke_world):
    """A model of random weights for a codec; markers and codes are likelier than text, so that most answers hold sound."""
    tokenizer = TextTokenizer.load(smoke_world / "tokenizer")
    return lambda codec, folder: _random_model(tokenizer, codec, folder)


def _random_model(tokenizer, codec, codec_folder):
    vocabulary = tokenizer.vocabulary(codec.codebook_size)
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=vocabulary.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    model = SpeechLM(SpeechLMConfig(backbone, 10)).eval().requires_grad_(False)
    with torch.no_grad():
        for head in model.heads:
            for parameter in head.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.4)
        weight = model.lm_head.weight
        weight[: vocabulary.first_code] *= 0.8
        weight[[vocabulary.begin_of_audio, vocabulary.end_of_audio]] = 1.5 * torch.randn(2, 32)
        weight[vocabulary.used :] = 0
    pattern, ratio = DecodePattern.of("boost"), IntervalRatio.of([1, 10, 4, 10])
    return LoadedModel(model, tokenizer, vocabulary, codec_folder, {}, pattern, ratio)


@pytest.fixture(scope="session")
def model_folder(loaded, smoke_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    save_released(
        loaded.model, folder, decode_pattern=list(loaded.pattern.runs), first_code=loaded.vocabulary.first_code
    )
    loaded.tokenizer.save(folder / "tokenizer")
    shutil.copytree(smoke_world / "codec", folder / "codec")
    manifest = {"stage": "sft", "vocabulary": loaded.vocabulary.fingerprint}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def make_config(limits=None, **settings):
    """Settings of a small server, and its limits."""
    usual = {"model": "runs/tiny/model", "slots": 2, "max_new_tokens": LONGEST, "port": 0, "sound_processes": 0}
    config = ServeConfig(**usual | settings, limits=LimitsConfig(**(limits or {})))
    config.check()
    return config


@pytest.fixture(scope="session")
def make_service(loaded, codec):
    """A service that decodes in a thread; whoever makes one closes it."""

    def make(limits=None, of=(loaded, codec), **settings):
        config = make_config(limits, **settings)
        return Service(*of, config, ThreadLink(of[0], config))

    return make


@pytest.fixture(scope="session")
def load(model_folder):
    """A service as the command makes it, with processes of its own."""
    return lambda limits=None, **settings: load_service(
        make_config(limits, model=str(model_folder), threads=torch.get_num_threads(), **settings)
    )


@pytest.fixture(scope="session")
def service(make_service):
    service = make_service(limits={"sessions_a_client": 64})
    yield service
    service.close()


class Running:
    """A server in a thread of its own."""

    def __init__(self, service):
        self.service = service
        self.server = DrainingServer(server_config(service), service)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started or not self.thread.is_alive(), "the server")
        self.url = f"http://127.0.0.1:{self.server.port}/v1"

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="session")
def run_server():
    """Runs a service; stopping closes it."""
    running = []

    def run(service):
        running.append(Running(service))
        return running[-1]

    run.running = running
    yield run
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def server(run_server, load):
    return run_server(load({"sessions_a_client": 64}, name="runs-tiny", sound_processes=1))


@pytest.fixture
def answered(monkeypatch, run_server):
    """Every answer that engines give in this test: its ticket and how it ended."""
    # what a client of an earlier test sent before it left can still be asked and answered
    services = [server.service for server in run_server.running]
    wait_until(lambda: not any(service.busy or service.sessions for service in services), "earlier clients to leave")
    found = []
    finish = Engine._finish

    def note(self, ticket, ended):
        found.append((ticket, ended))
        finish(self, ticket, ended)

    monkeypatch.setattr(Engine, "_finish", note)
    return found
