"""Speech synthesis while a corpus is prepared: voices, the messages to speak, and the stored audio."""

from vita_audio_pl.data.speaking.kept import KeptSpeech
from vita_audio_pl.data.speaking.reader import SpeakingReader
from vita_audio_pl.data.speaking.voices import Voice, VoiceSettings, register_voice, voice_facts

__all__ = ["KeptSpeech", "SpeakingReader", "Voice", "VoiceSettings", "register_voice", "voice_facts"]
