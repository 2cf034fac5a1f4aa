"""A tiny world for training tests: random documents as a pure function of seed and step, and the settings to train on it."""

import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.codecs import MelVQ, MelVQConfig
from vita_audio_pl.codecs.protocol import register_codec
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.text import TextTokenizer, Vocabulary
from vita_audio_pl.training.callbacks.sample_prompts import SamplePrompt
from vita_audio_pl.training.checks import apply_stage_settings
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.starting_model import backbone_config
from vita_audio_pl.training.stage.train import StageData

VOCABULARY = Vocabulary(20, 16, im_start=1, im_end=2, pad=0)
HEARING = replace(VOCABULARY, continuous_input=True)
LENGTH, DOCUMENT = 32, 12
FRAMES, PLACES = 2, 6  # of the clip that each row begins with for models that hear, and its tokens


def toy_batch(
    seed: int, step: int, rows: slice, rows_per_step: int, row: int = 0, hears: bool = False, text_weight: float = 1.0
) -> PackedBatch:
    """Rows `rows` of global step `step`: two documents of 12 tokens and 8 of padding each; every label counts.

    Labels of text count `text_weight` times.
    """
    rng = np.random.default_rng([seed, step])
    ids = rng.integers(0, VOCABULARY.used, (rows_per_step, LENGTH))
    ids[:, 1::2] = (ids[:, ::2] * 7 + 3) % VOCABULARY.used  # half of the tokens can be learnt
    place = np.arange(LENGTH)
    documents = np.where(place < 2 * DOCUMENT, place // DOCUMENT, -1)
    documents = np.broadcast_to(documents, ids.shape)
    labels = np.where((documents >= 0) & (place % DOCUMENT >= 2), ids, -100)
    clips: tuple[torch.Tensor, ...] = ()
    if hears:
        ids[ids == HEARING.context_of_audio] = HEARING.end_of_audio
        ids[:, :PLACES], labels[:, :PLACES] = HEARING.context_of_audio, -100
        frames = rng.normal(size=(rows_per_step, FRAMES, SenseVoiceConfig().input_size)).astype(np.float32)
        clips = tuple(torch.from_numpy(frames[rows]))
    writers = np.where(labels >= 0, (place % DOCUMENT) % 4, -1)
    tensor = torch.from_numpy
    weights = np.where(labels < 0, 0, np.where(labels < VOCABULARY.n_text, text_weight, 1)).astype(np.float32)
    return PackedBatch(
        input_ids=tensor(ids[rows]),
        labels=tensor(labels[rows]),
        position_ids=tensor(np.broadcast_to(place % DOCUMENT, ids.shape)[rows].copy()),
        document_ids=tensor(documents[rows].astype(np.int32)),
        writers=tensor(writers[rows].astype(np.int8)),
        loss_weights=None if text_weight == 1 else tensor(weights[rows]),
        divisor=float(weights.sum()),
        sources=tensor(np.where(documents >= 0, 0, -1)[rows].astype(np.int16)),
        names=[["toy/a", "toy/b"]] * (rows.stop - rows.start),
        position={"row": row},
        clips=clips,
    )


class ToyBatches(torch.utils.data.IterableDataset):
    def __init__(self, owner: "ToyData", rank: int, ranks: int) -> None:
        self.seed, self.rank, self.ranks, self.hears = owner.seed, rank, ranks, owner.hears
        self.text_weight = owner.text_weight
        self.rows, self.accumulate, self.start = owner.rows, owner.accumulate, owner.start

    def __iter__(self):
        total = self.rows * self.accumulate * self.ranks
        row = self.start
        while True:
            step, first = divmod(row, total)
            row += self.rows * self.ranks
            mine = first + self.rank * self.rows
            yield toy_batch(self.seed, step, slice(mine, mine + self.rows), total, row, self.hears, self.text_weight)


class ToyData(L.LightningDataModule):
    def __init__(
        self, seed: int = 0, rows: int = 4, accumulate: int = 1, hears: bool = False, text_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.hears, self.text_weight = hears, text_weight
        self.seed, self.rows, self.accumulate, self.start = seed, rows, accumulate, 0

    def consumed(self, batch: PackedBatch) -> None:
        self.start = batch.position["row"]

    def state_dict(self) -> dict:
        return {"row": self.start}

    def load_state_dict(self, state_dict: dict) -> None:
        self.start = state_dict["row"]

    def train_dataloader(self):
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        return torch.utils.data.DataLoader(ToyBatches(self, rank, ranks), batch_size=None)

    def val_dataloader(self):
        held_out = [toy_batch(self.seed + 1, step, slice(0, 4), 4, hears=self.hears) for step in range(2)]
        return torch.utils.data.DataLoader(held_out, batch_size=None)


class ToneCodec:
    """Each code is 80 ms of a tone, at a phase drawn from the global generators: decoding disturbs them."""

    name, sample_rate, codes_per_second, codebook_size, fingerprint = "tone", 8000, 12.5, 16, "codec-a"

    def decode(self, codes: np.ndarray) -> np.ndarray:
        phase = np.random.random() + float(torch.rand(()))
        pitch = np.repeat(200.0 + 50 * np.asarray(codes), 640)
        return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 8000 + phase)).astype(np.float32)


register_codec("tone", lambda folder: ToneCodec())


def toy_prompts(hears: bool = False) -> tuple[SamplePrompt, ...]:
    """A prompt of each task that stages of the toy world answer."""
    rng = np.random.default_rng(5)
    clips = (torch.from_numpy(rng.normal(size=(FRAMES, SenseVoiceConfig().input_size)).astype(np.float32)),)
    prompts = []
    for task in ("asr", "tts", "text"):
        ids = rng.integers(3, VOCABULARY.n_text, 7).tolist()
        heard = [HEARING.context_of_audio] * PLACES if hears and task == "asr" else []
        prompts.append(SamplePrompt(f"toy/{task}", task, [*heard, *ids], clips if heard else (), "", "a tone"))
    return tuple(prompts)


def toy_data(
    folder: Path,
    datamodule: ToyData | None = None,
    codec: str = "codec-a",
    prompts: bool = False,
    held_out: tuple[str, ...] = ("toy",),
) -> StageData:
    for name in ("tokenizer", "codec"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}.json").write_text('{"name": "tone"}')
    datamodule = datamodule or ToyData()
    if prompts:  # any tokenizer can say what the toy's tokens are
        shutil.rmtree(folder / "tokenizer")
        TextTokenizer.train(["a tone"], 260, folder / "tokenizer")
    return StageData(
        datamodule=datamodule,
        vocabulary=HEARING if datamodule.hears else VOCABULARY,
        tokenizer_folder=folder / "tokenizer",
        tokenizer="tokenizer-a",
        codec_folder=folder / "codec",
        codec="toy",
        codec_fingerprint=codec,
        codes_per_second=12.5,
        source_names=("toy",),
        plan="toy",
        held_out=held_out,
        front_end=SenseVoiceFrontEnd() if datamodule.hears else None,
        prompts=toy_prompts(datamodule.hears) if prompts else (),
    )


def toy_encoder(folder: Path) -> Path:
    """A tiny encoder with random weights, in a folder of the public layout."""
    torch.manual_seed(0)
    sizes = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1)
    SenseVoiceEncoder(sizes).save(folder, SenseVoiceFrontEnd())
    return folder


def toy_config(runs: Path, *overrides: str) -> TrainConfig:
    """The real configuration, cut to a size that trains in a second."""
    register_schema("train", TrainConfig)
    small = [
        "model.hidden_size=16", "model.intermediate_size=32", "model.num_hidden_layers=2",
        "model.num_attention_heads=2", "model.num_key_value_heads=1", "stage.steps=6", "stage.rows_per_step=4",
        "stage.sequence_length=32", "n_heads=3", "logger=csv", "callbacks.log_every=1", f"paths.runs={runs}",
        "callbacks.progress_bar=false", "stage.learning_rate=1e-3", "stage.head_rate_factor=2.0",
    ]  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        return to_dataclass(compose("train", overrides=[*small, *overrides]), apply_stage_settings)


def published_folder(
    folder: Path, tokenizer: TextTokenizer, waves: list[np.ndarray], n_codes: int = 16, hears: bool = False
) -> Path:
    """A published-looking model with a codec that is fitted to `waves`: the layout of Boost, random weights, two heads.

    hears: the layout of Plus-Boost, with an encoder.
    """
    words = tokenizer.vocabulary(n_codes, hears)
    torch.manual_seed(0)
    model = SpeechLM(SpeechLMConfig(backbone_config(toy_config(folder).model, words), 2))
    if hears:
        encoder = toy_encoder(folder / "speech_input")
        add_speech_input(model, SenseVoiceEncoder.load(encoder), words.context_of_audio)
    save_released(model, folder, decode_pattern=[1, 10, 4, 10], first_code=words.first_code)
    tokenizer.save(folder / "tokenizer")
    MelVQ.fit(waves, MelVQConfig(codebook_size=n_codes), 0).save(folder / "codec")
    return folder
