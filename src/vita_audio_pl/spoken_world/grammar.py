"""The templates of the spoken world as a JSGF grammar, for a speech recogniser that acts as judge."""

from vita_audio_pl.spoken_world.sentences import NUMBERS, Lexicon

_FACT_RULES = {
    "home": ("where does the <subject> live", "the <subject> lives in the <home>"),
    "food": ("what does the <subject> want", "the <subject> wants <food>"),
    "act": ("what does the <subject> do", "the <subject> <act>"),
}


def grammar(lexicon: Lexicon) -> str:
    """JSGF text that accepts every sentence of the world, true or false: any animal may live anywhere."""
    counts = sorted({NUMBERS[count + more] for count in lexicon.counts for more in (-1, 0)}, key=NUMBERS.index)
    words = {
        "size": lexicon.sizes,
        "colour": lexicon.colours,
        "animal": [animal.name for animal in lexicon.animals],
        "person": lexicon.people,
        "view": lexicon.views,
        "count": counts,
        "thing": lexicon.things,
        "gain": lexicon.gains,
    }
    words |= {fact: sorted({getattr(animal, fact) for animal in lexicon.animals}) for fact in lexicon.facts}
    sentences = [sentence for fact in lexicon.facts for sentence in _FACT_RULES[fact]]
    sentences += [
        "the <person> has <count> <thing> and <gain> one more",
        "the <person> has <count> <thing>",
        "the <person> <view> the <size> <animal>",
    ]
    lines = ["#JSGF V1.0;", "grammar spoken_world;", "public <sentence> = " + " | ".join(sentences) + ";"]
    lines.append("<subject> = <size> <colour> <animal>;")
    lines += [f"<{name}> = {' | '.join(choices)};" for name, choices in words.items()]
    return "\n".join(lines) + "\n"
