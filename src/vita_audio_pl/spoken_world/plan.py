"""Which sample says what in which voice: the whole corpus on paper, before a word of it is spoken."""

import random
from dataclasses import dataclass, field
from typing import Any

from vita_audio_pl.spoken_world.sentences import Lexicon, Split, SplitSentences, split_sentences
from vita_audio_pl.spoken_world.synthesis import Voice

INPUT_VOICES = ("en-us+m2", "en-us+m6", "en-us+f5")
UNSEEN_VOICE = "en-us+f3"
ASSISTANT = Voice("flite-rms")  # of all that apt installs, the one understood best
SPEEDS = (150, 158, 166, 174, 182)  # words per minute
PITCHES = (38, 46, 54, 62)  # espeak-ng's scale, 0 to 99
MOST_ASR = {"dev": 120, "test": 320}  # of the split's sentences; train takes all
# Times that a sentence is heard in training, each in another voice: with one take a small model learns takes by heart.
ASR_TAKES, SQA_TAKES = 3, 2
UNSEEN = "unseen_voice"

ASR_PROMPT = "Convert the speech to text.\n<|audio|>"
TTS_PROMPT = "Convert the text to speech.\n"

Utterance = tuple[Voice, str]


@dataclass
class Corpus:
    """Samples by file stem (`asr.train`), and every utterance they need with the audio path it gets."""

    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    utterances: dict[Utterance, str] = field(default_factory=dict)

    def audio(self, voice: Voice, text: str) -> str:
        """Path of an utterance relative to the world's folder; the same utterance is spoken once."""
        return self.utterances.setdefault((voice, text), f"audio/{voice.name}/{len(self.utterances):05d}.flac")

    def add(self, task: str, split: str, user: str, assistant: str, audios: list[str]) -> None:
        """Appends a sample in the project's conversation format."""
        rows = self.samples.setdefault(f"{task}.{split}", [])
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        name = f"{task}.{split}.{len(rows):05d}"
        rows.append({"id": name, "task": task, "messages": messages, "audios": audios})


def plan_corpus(lexicon: Lexicon, seed: int) -> Corpus:
    """Lays out all samples: asr, tts, sqa (spoken questions) and text in each split; asr and sqa in an unseen voice."""
    corpus = Corpus()
    rng = random.Random(f"voices {seed}")
    for split, sentences in split_sentences(lexicon, seed).items():
        heard = _asr_texts(split, sentences, rng)
        for text in heard:
            for voice in _speakers(ASR_TAKES if split == "train" else 1, rng):
                corpus.add("asr", split, ASR_PROMPT, text, [corpus.audio(voice, text)])
        for exchange in sentences.exchanges:
            answered = corpus.audio(ASSISTANT, exchange.answer)
            for voice in _speakers(SQA_TAKES if split == "train" else 1, rng):
                asked = corpus.audio(voice, exchange.question)
                corpus.add("sqa", split, "<|audio|>", f"{exchange.answer}\n<|audio|>", [asked, answered])
            corpus.add("text", split, exchange.question, exchange.answer, [])
        for text in (*sentences.answers, *sentences.statements):
            corpus.add("tts", split, TTS_PROMPT + text, "<|audio|>", [corpus.audio(ASSISTANT, text)])
        if split == "test":
            for text in heard:
                corpus.add("asr", UNSEEN, ASR_PROMPT, text, [corpus.audio(_jittered(UNSEEN_VOICE, rng), text)])
            for exchange in sentences.exchanges:
                asked = corpus.audio(_jittered(UNSEEN_VOICE, rng), exchange.question)
                answered = corpus.audio(ASSISTANT, exchange.answer)
                corpus.add("sqa", UNSEEN, "<|audio|>", f"{exchange.answer}\n<|audio|>", [asked, answered])
    return corpus


def _asr_texts(split: Split, sentences: SplitSentences, rng: random.Random) -> list[str]:
    texts = [*sentences.questions, *sentences.answers, *sentences.statements]
    rng.shuffle(texts)
    return texts[: MOST_ASR.get(split)]


def _speakers(takes: int, rng: random.Random) -> list[Voice]:
    """Different input voices, each at a speed and pitch of its own."""
    return [_jittered(name, rng) for name in rng.sample(INPUT_VOICES, takes)]


def _jittered(name: str, rng: random.Random) -> Voice:
    return Voice(name, rng.choice(SPEEDS), rng.choice(PITCHES))
