"""Text, audio codes and turns as token ids: vocabulary, chat template, labels."""

from vita_audio_pl.text.conversation import ASR_INSTRUCTION, TTS_INSTRUCTION, Conversation
from vita_audio_pl.text.messages import ROLES, Message
from vita_audio_pl.text.rendering import LengthRule, Lengths, Rendered, Renderer, RenderOptions
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.turns import AudioCodes, AudioFrames, Segment, TextIds, Turn, TurnCounts, conversation_to_turns
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER, Vocabulary, code_token, special_tokens

__all__ = [
    "ASR_INSTRUCTION",
    "AUDIO_PLACEHOLDER",
    "AudioCodes",
    "AudioFrames",
    "Conversation",
    "LengthRule",
    "Lengths",
    "Message",
    "ROLES",
    "RenderOptions",
    "Rendered",
    "Renderer",
    "Segment",
    "TTS_INSTRUCTION",
    "TextIds",
    "TextTokenizer",
    "Turn",
    "TurnCounts",
    "Vocabulary",
    "code_token",
    "conversation_to_turns",
    "special_tokens",
]
