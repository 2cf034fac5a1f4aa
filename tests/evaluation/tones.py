"""Sample rate and sentences of a bench of six tones, and a judge that counts tenths of a second in beeps."""

RATE = 16000
SENTENCES = ["the red cow", "the big cow", "anna has cups", "the cow lives here", "anna eats", "a red cup"]


class CountingJudge:
    """Hears as many "beep"s as there are tenths of a second."""

    def transcribe(self, waves, sample_rate):
        return [" ".join(["beep"] * round(10 * len(wave) / sample_rate)) for wave in waves]
