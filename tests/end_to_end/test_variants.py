"""All four published variants from configuration to answers, at their real sizes on the meta device and tiny for real."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.codecs import MelVQ, MelVQConfig
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.data.recipe import parse_recipe
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.runs.evaluate import run_session
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.generate import generate
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.preparation import prepare_split, tokenize_job
from vita_audio_pl.text import TextTokenizer, Vocabulary
from vita_audio_pl.train import train
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.data import prepared_data
from vita_audio_pl.training.stage.starting_model import backbone_config

VARIANTS = ("vita_audio_boost", "vita_audio_balance", "vita_audio_plus_vanilla", "vita_audio_plus_boost")
SENTENCES = ("the red cow", "the big cow", "anna has cups", "the cow lives here", "anna eats", "a red cup")
RATE = 16_000


def composed(*overrides: str) -> TrainConfig:
    register_schema("train", TrainConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        config: TrainConfig = to_dataclass(compose("train", overrides=list(overrides)), apply_stage_settings)
    check_train_config(config)
    return config


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_size_has_the_published_parts(variant):
    config = composed("scale=published", f"variant={variant}", "stage=sft")
    hears = config.variant.has_audio_encoder
    vocabulary = Vocabulary(151_665, config.codec.codebook_size, hears, im_start=0, im_end=1, pad=2)
    assert vocabulary.size == 168_072
    settings = SpeechLMConfig(backbone_config(config.model, vocabulary), config.n_heads)
    if hears:
        settings.encoder, settings.context_of_audio = SenseVoiceConfig(), vocabulary.context_of_audio
    model = SpeechLM.on_meta(settings)
    hidden, inner = 3584, 18_944
    layer = 2 * (hidden * hidden + hidden * 512) + hidden + 2 * 512 + 3 * hidden * inner + 2 * hidden
    assert sum(p.numel() for p in model.model.parameters()) == 168_072 * hidden + 28 * layer + hidden
    assert sum(p.numel() for p in model.heads.parameters()) == config.n_heads * (
        layer + 2 * hidden * hidden + 2 * hidden
    )
    assert config.n_heads == (0 if variant == "vita_audio_plus_vanilla" else 10)
    if hears:
        assert sum(p.numel() for p in model.speech_input.encoder.parameters()) == 221_145_952
        assert (
            sum(p.numel() for p in model.speech_input.audio_projection.parameters()) == 1024 + 512 * hidden + hidden**2
        )
    else:
        assert model.speech_input is None


@dataclass(frozen=True)
class World:
    """A corpus of tones, prepared with its audio kept: one set of shards for ears and for codes."""

    folder: Path

    def settings(self, variant: str, stage: str, *overrides: str) -> TrainConfig:
        return composed(
            f"variant={variant}", f"stage={stage}", f"run_name={variant}", f"paths.runs={self.folder / 'runs'}",
            "data.spoken_world=null", f"data.shards={self.folder / 'shards'}", f"stage.mixture={self.folder / 'mix.yaml'}",
            "data.workers=0", "data.validation=''", "codec.codebook_size=8", "model.hidden_size=32",
            "model.intermediate_size=48", "model.num_hidden_layers=2", "stage.steps=3", "stage.rows_per_step=4",
            "stage.sequence_length=128", "logger=csv", "callbacks.progress_bar=false", "callbacks.log_every=1",
            "rendering.lead_in_codes=0", *([] if variant == "vita_audio_plus_vanilla" else ["n_heads=2"]), *overrides,
        )  # fmt: skip

    def train(self, variant: str, stage: str, *overrides: str) -> Path:
        train(self.settings(variant, stage, *overrides))
        return self.folder / "runs" / variant / stage / "model"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("tones")
    rng, tones = np.random.default_rng(0), []
    samples: dict[str, list] = {task: [] for task in ("asr", "tts", "sqa", "text", "voice")}
    for n, text in enumerate(SENTENCES):
        loud = np.repeat(rng.uniform(0.1, 0.9, 8), 800)
        tones.append((loud * np.sin(np.arange(len(loud)) * rng.uniform(0.05, 0.6))).astype(np.float32))
        soundfile.write(folder / f"{n}.wav", tones[-1], RATE)
        asked = f"Convert the text to speech.\n{text}"
        conversations = {
            "asr": [("user", "Convert the speech to text.\n<|audio|>"), ("assistant", text)],
            "tts": [("user", asked), ("assistant", "<|audio|>")],
            "sqa": [("user", "<|audio|>"), ("assistant", f"{text}\n<|audio|>")],
            "text": [("user", text), ("assistant", text)],
            "voice": [("system", "Your Voice: <|audio|>\n"), ("user", asked), ("assistant", "<|audio|>")],
        }
        for task, turns in conversations.items():
            audios = [f"{n}.wav"] * sum("<|audio|>" in content for _, content in turns)
            messages = [{"role": role, "content": content} for role, content in turns]
            samples[task].append({"id": f"{task}{n}", "messages": messages, "audios": audios})
    codec = MelVQConfig(codebook_size=8, n_mels=20, pca_size=8, griffin_lim_iterations=1)
    MelVQ.fit(tones, codec, 0).save(folder / "codec")
    text = " ".join(SENTENCES) + " Convert the text to speech. Your Voice: system user assistant"
    tokenizer = TextTokenizer.train([text] * 9, 300, folder / "tokenizer")
    torch.manual_seed(0)
    sizes = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1)
    SenseVoiceEncoder(sizes).save(folder / "speech_input", SenseVoiceFrontEnd().fitted(tones))
    for task, rows in samples.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{task}.test.jsonl").write_text("".join(lines))
        (folder / f"{task}.jsonl").write_text("".join(lines * 4))
        about = {name: "none" for name in ("description", "licence", "home", "layout")}
        kind = "tts" if task == "voice" else task
        reader = {"kind": "jsonl", "files": [f"{task}.jsonl"]}
        recipe = parse_recipe(task, {"task": kind, "languages": ["en"], "reader": reader, **about}, task)
        prepare_split(
            tokenize_job(
                recipe, "train", root=folder, shards=folder / "shards", tokenizer=tokenizer,
                codec_folder=folder / "codec", keep_audio=True,
            )
        )  # fmt: skip
    (folder / "mix.yaml").write_text("sources: {asr: 1, tts: 2, sqa: 2, text: 0.5, voice: 2}")
    return World(folder)


@pytest.mark.parametrize("variant", ["vita_audio_boost", "vita_audio_plus_boost"])
def test_a_voice_prompt_is_trained_on_as_the_variant_hears(variant, world):
    (world.folder / "voice.yaml").write_text("sources: {voice: 1}")
    config = world.settings(variant, "align", f"stage.mixture={world.folder / 'voice.yaml'}")
    data = prepared_data(config, n_heads=0)
    vocabulary, batch = data.vocabulary, next(iter(data.datamodule.train_dataloader()))
    first = batch.document_ids[0] == 0
    ids, labels = batch.input_ids[0][first].tolist(), batch.labels[0][first].tolist()
    asked, answer = ids[: (start := labels.index(next(x for x in labels if x >= 0)))], ids[start:]
    prompt = asked[asked.index(vocabulary.begin_of_audio) + 1 : asked.index(vocabulary.end_of_audio)]
    system = TextTokenizer.load(world.folder / "tokenizer").decode(asked[1 : asked.index(vocabulary.begin_of_audio)])
    assert system == "system\nYour Voice: "
    if config.variant.has_audio_encoder:
        assert set(prompt) == {vocabulary.context_of_audio} and len(prompt) == len(batch.clips[0]) + 4
    else:
        assert vocabulary.is_code(prompt).all() and not batch.clips
    assert len(vocabulary.codes_of(answer)) == 5  # the answer is codes in both: 0.4 s at 12.5 a second


def bench(world: World) -> BenchConfig:
    tasks = {"asr": {"test": "asr.test.jsonl"}}
    return BenchConfig("tones", "Tones", root=str(world.folder), tasks=tasks, max_new_tokens={"asr": 12})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_trains_every_stage_and_answers(variant, world, capsys):
    stages = world.settings(variant, "align").variant.stages
    hears = variant.startswith("vita_audio_plus")
    learns = variant == "vita_audio_plus_boost"  # the demo shows that the discrete ones do
    more = {"align": ("stage.steps=150", "stage.learning_rate=1e-2")} if learns else {}
    models = {stage: world.train(variant, stage, *more.get(stage, ())) for stage in stages}
    parameters = {stage: dict(load_model(folder).named_parameters()) for stage, folder in models.items()}

    def moved(stage: str, part: str) -> bool:
        before = parameters[stages[stages.index(stage) - 1]]
        return any(not torch.equal(p, before[n]) for n, p in parameters[stage].items() if n.startswith(part))

    for stage in stages[1:]:
        assert moved(stage, "model.") == (stage == "sft")
        if hears:  # the adapter goes with the language model, the encoder stays as align left it
            assert moved(stage, "speech_input.audio_projection.") == (stage == "sft")
            assert not moved(stage, "speech_input.audio_model.")
    manifest = StageManifest.read(models["sft"])
    assert (manifest.variant, manifest.speech_input) == (variant, "encoder" if hears else "codes")
    assert manifest.n_heads == (0 if variant == "vita_audio_plus_vanilla" else 2)
    assert (models["sft"] / "speech_input" / "am.mvn").is_file() == hears

    answer, heard, voice = (str(world.folder / name) for name in (f"{variant}.wav", "2.wav", "1.wav"))
    asked = GenerateConfig(model=str(models["align" if learns else "sft"].parent), max_new_tokens=40, output=answer)
    answers = []
    for config in (
        replace(asked, task="asr", audio=heard),
        replace(asked, task="tts", text="anna eats", voice=voice),
        replace(asked, task="sts", audio=heard, stream=True, mode="vanilla"),
    ):
        capsys.readouterr()
        generate(config)
        answers.append(capsys.readouterr())
        assert " backbone and " in answers[-1].err
    if learns:
        told = answers[0].out.strip()  # from the states of the encoder alone
        assert min(SENTENCES, key=lambda sentence: jiwer.wer(sentence, told)) == SENTENCES[2], told
        assert " s of speech in " in answers[2].err and len(soundfile.read(answer)[0]) > 0

    (result,) = run_session(
        EvaluateConfig(bench=bench(world), model=str(models["sft"]), limit=3, workers=1, device="cpu", controls=0)
    )
    assert (result["task"], result["utterances"]) == ("asr", 3)
