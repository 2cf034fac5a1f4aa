"""What a reader yields: good samples, and those that cannot be read."""

from vita_audio_pl.data.readers import RawSample, Reader, Unreadable


def everything(reader: Reader) -> list[RawSample | Unreadable]:
    return [sample for part in reader.parts() for sample in reader.read(part)]


def good(reader: Reader) -> list[RawSample]:
    return [sample for sample in everything(reader) if isinstance(sample, RawSample)]


def bad(reader: Reader) -> list[Unreadable]:
    return [sample for sample in everything(reader) if isinstance(sample, Unreadable)]


def contents(sample: RawSample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.conversation.messages]
