"""Scoring protocols: the strict one, and the one behind published tables."""

from dataclasses import dataclass

from vita_audio_pl.errors import UserError


@dataclass(frozen=True)
class Profile:
    """How raw answers become scores. Generation is the same under every profile.

    Attributes:
        cut_asr_at_reference_length: a transcript is cut after as many units as its reference has, so trailing
            insertions are not counted.
        drop_silent_answers: answers without audio leave the denominator of speech metrics.
        skip_missing: utterances that could not be asked (unreadable audio) leave the denominator.
        substring_answers: an accepted answer counts where its letters occur, even inside another word.
    """

    name: str
    cut_asr_at_reference_length: bool
    drop_silent_answers: bool
    skip_missing: bool
    substring_answers: bool

    def differences(self) -> list[str]:
        """One sentence for each way in which this profile flatters a model."""
        return [
            sentence
            for applies, sentence in (
                (self.cut_asr_at_reference_length, "transcripts are cut at the length of their reference"),
                (self.drop_silent_answers, "answers without audio are left out of the denominator"),
                (self.skip_missing, "utterances whose audio cannot be read are left out of the denominator"),
                (self.substring_answers, "an answer counts as contained even inside another word"),
            )
            if applies
        ]


STRICT = Profile("strict", False, False, False, False)
REFERENCE = Profile("reference", True, True, True, True)


def get_profile(name: str) -> Profile:
    """Profile by name.

    Raises:
        UserError: there is no such profile.
    """
    for profile in (STRICT, REFERENCE):
        if profile.name == name:
            return profile
    raise UserError(f"there is no profile '{name}'; choose strict or reference")
