"""Prompts for the model, as conversations and as token ids."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from vita_audio_pl.config.decoding import TASKS
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.text.conversation import ASR_INSTRUCTION, TTS_INSTRUCTION, Conversation
from vita_audio_pl.text.messages import Message
from vita_audio_pl.text.rendering import Renderer, RenderOptions
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.turns import AudioFrames, conversation_to_turns
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER, Vocabulary


def task_conversation(
    task: str, *, text: str | None = None, audio: str | None = None, voice: str | None = None
) -> Conversation:
    """The conversation that requests one answer of a task.

    Args:
        task: one of `TASKS`.
        text: text to speak (tts) or to answer (text).
        audio: path of the recording to answer or transcribe (sts, asr).
        voice: path of a recording of the voice to answer in, for the system turn.

    Raises:
        UserError: an unknown task, or a missing or superfluous input.
    """
    if task not in TASKS:
        raise UserError(f"task={task!r} is unknown; use one of {', '.join(TASKS)}")
    wants_audio = task in ("sts", "asr")
    given, needed = ("text", "audio") if wants_audio else ("audio", "text")
    if (audio if wants_audio else text) in (None, ""):
        raise UserError(f"task={task} needs {needed}=...")
    if (text if wants_audio else audio) not in (None, ""):
        raise UserError(f"task={task} takes {needed}=..., not {given}=...")
    content = {
        "sts": AUDIO_PLACEHOLDER,
        "asr": f"{ASR_INSTRUCTION}\n{AUDIO_PLACEHOLDER}",
        "tts": f"{TTS_INSTRUCTION}\n{text}",
        "text": text or "",
    }[task]
    system = (Message("system", f"Your Voice: {AUDIO_PLACEHOLDER}\n"),) if voice else ()
    audios = tuple(path for path in (voice, audio) if path)
    return Conversation(f"task={task}", (*system, Message("user", content)), audios)


class Prompter:
    """Renders conversations as prompts and decodes answers.

    Args:
        vocabulary, tokenizer: the model's.
        rendering: format of spoken answers in the training data (`LoadedModel.rendering`), for conversations with
            earlier answers.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: TextTokenizer, rendering: RenderOptions | None = None):
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self._renderer = Renderer(vocabulary, tokenizer, rendering or RenderOptions(ratio=None))

    def ids(self, conversation: Conversation, codes: Sequence[NDArray[Any] | AudioFrames] = ()) -> list[int]:
        """Token ids of the conversation, up to where the assistant's answer begins.

        Args:
            codes: codes or frames of each path in `conversation.audios`.
        """
        ids: list[int] = self._renderer.prompt(conversation_to_turns(conversation, self.tokenizer, codes)).tolist()
        return ids

    def text(self, generation: Generation) -> str:
        """The text of the answer, stripped."""
        return answer_text(generation, self.vocabulary, self.tokenizer)


def answer_text(generation: Generation, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> str:
    """The text of an answer, stripped."""
    return tokenizer.decode(generation.text_ids(vocabulary)).strip()
