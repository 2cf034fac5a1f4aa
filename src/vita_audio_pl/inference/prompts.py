"""Questions to the model, as conversations and as token ids."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.text.conversation import ASR_INSTRUCTION, TTS_INSTRUCTION, Conversation
from vita_audio_pl.text.messages import Message
from vita_audio_pl.text.rendering import Renderer, RenderOptions
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.turns import AudioFrames, conversation_to_turns
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER, Vocabulary

TASKS = ("sts", "asr", "tts", "text")
"""Speech to speech, speech recognition, speech synthesis, text to text."""


def task_conversation(
    task: str, *, text: str | None = None, audio: str | None = None, voice: str | None = None
) -> Conversation:
    """The conversation that asks for one answer of a task.

    Args:
        task: one of `TASKS`.
        text: what is to be spoken (tts) or answered (text).
        audio: path of the recording that is asked about (sts, asr).
        voice: path of a recording of the voice to answer in, for the system turn.

    Raises:
        UserError: an unknown task, or an input that the task needs or cannot use.
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
    """Writes conversations as prompts and reads answers back.

    Args:
        vocabulary: of the model.
        tokenizer: of the model.
        rendering: how the model's training data writes spoken answers (`LoadedModel.rendering`), for conversations that
            hold earlier ones.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: TextTokenizer, rendering: RenderOptions | None = None):
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self._renderer = Renderer(vocabulary, tokenizer, rendering or RenderOptions(ratio=None))

    def ids(self, conversation: Conversation, codes: Sequence[NDArray[Any] | AudioFrames] = ()) -> list[int]:
        """Token ids of the conversation, up to where the assistant's answer begins.

        Args:
            codes: what each path of `conversation.audios` became.
        """
        ids: list[int] = self._renderer.prompt(conversation_to_turns(conversation, self.tokenizer, codes)).tolist()
        return ids

    def text(self, generation: Generation) -> str:
        """What the answer says in text, outer blanks removed."""
        return answer_text(generation, self.vocabulary, self.tokenizer)


def answer_text(generation: Generation, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> str:
    """What an answer says in text, outer blanks removed."""
    return tokenizer.decode(generation.text_ids(vocabulary)).strip()
