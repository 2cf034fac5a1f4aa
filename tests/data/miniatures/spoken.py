"""Speech in the wild, and spoken questions and answers."""

import json
from pathlib import Path

from miniatures.base import Expected, miniature, sound, write, write_parquet, write_tar


def _emilia(root: Path) -> None:
    """LANGUAGE/LANGUAGE-BATCH.tar of ID.mp3 and ID.json; transcripts begin with a blank."""
    said = {
        "ZH": [("ZH_B00000_S00000", "你好世界。"), ("ZH_B00000_S00000", "再见。"), ("ZH_B00000_S00001", "好。")],
        "EN": [("EN_B00000_S00000", " And I said, yes."), ("EN_B00000_S00000", " That's right.")],
        "DE": [("DE_B00000_S00000", " Nie gelesen.")],
    }
    for language, utterances in said.items():
        members = {}
        for number, (speaker, text) in enumerate(utterances):
            id = f"{speaker}_W{number:06}"
            facts = {
                "id": id, "wav": f"{speaker[:9]}/{speaker}/mp3/{id}.mp3", "text": text, "duration": 0.5, "speaker": speaker,
                "language": language.lower(), "dnsmos": 3.3697,
            }  # fmt: skip
            members[f"{id}.json"] = json.dumps(facts, ensure_ascii=False).encode()
            members[f"{id}.mp3"] = sound(0.5, 24_000, "MP3")
        write_tar(root / f"Emilia/{language}/{language}-B000000.tar", members)
    write_tar(root / "Emilia-YODAS/EN/EN-B000000.tar", {"EN_x.json": b"{}", "EN_x.mp3": sound(0.5, 24_000, "MP3")})


miniature(
    "emilia", train=Expected(["你好世界。", "再见。", "好。", "And I said, yes.", "That's right."], 2.5)
)(_emilia)  # fmt: skip
miniature(
    "emilia_speaker_prompt",
    train=Expected(
        ["你好世界。", "再见。", "And I said, yes.", "That's right."],
        4.0,
        skipped={"only utterance of its speaker": 1},
    ),
)(_emilia)


@miniature(
    "voiceassistant_400k",
    train=Expected(["user: <|audio|>\nassistant: I'm Omni, a voice assistant.\n<|audio|>"] * 2, 2.0),
)
def voiceassistant_400k(root: Path) -> None:
    """Parquet with spoken questions and written answers, whose codes are of another codec, so that a voice speaks them."""
    rows = [
        {
            "split_name": "identity", "index": f"identity_{n}", "round": 1, "question": "Who are you?",
            "question_audio": {"bytes": sound(0.5, 22_050), "path": f"identity_{n}.wav"},
            "answer": "I'm Omni, a voice assistant.", "answer_snac": "# 1 2 3 4 5 6 7",
        }
        for n in range(2)
    ]  # fmt: skip
    write_parquet(root / "data/train-00000-of-00325.parquet", rows)


@miniature(
    "audioqa_1m",
    train=Expected(
        ["system: You are Lucy.\nuser: <|audio|>\nassistant: 松林里。\n<|audio|>"], 1.0, skipped={"unreadable audio": 1}
    ),
    dev=Expected(["user: <|audio|>\nassistant: Yes.\n<|audio|>"], 1.0),
)
def audioqa_1m(root: Path) -> None:
    """JSON lists of conversations, with the paths of the machine that they were made on; the tars are unpacked."""

    def talk(number: int, question: str, answer: str, system: str = "") -> dict:
        heard = f"QA_1450K_question_tar_16khz/question_shuf_part_6/wav/{number:09}_question"
        spoken = f"QA_1450K_answer_part1_tar_16khz/answer_part1_shuf_part_3/wav/{number:09}_F10"
        write(root / f"{heard}.wav", sound(0.5))
        if number != 1:
            write(root / f"{spoken}.wav", sound(0.5))
        theirs = "/mnt/data/somebody/Dataset/AudioQA"
        turns = [{"role": "system", "content": system}] if system else []
        return {
            "conversations": [
                *turns,
                {"role": "user", "content": question, "wavpath": f"{theirs}/{heard}.wav", "codec": f"{theirs}/{heard}.snac"},
                {"role": "assistant", "content": answer, "wavpath": f"{theirs}/{spoken}.wav", "codec": f"{theirs}/{spoken}.snac", "speaker": "F10"},
            ]
        }  # fmt: skip

    train = [talk(0, "能帮我写一首现代诗吗？", "松林里。", "You are Lucy."), talk(1, "Why?", "Because.")]
    write(root / "train.json", json.dumps(train, ensure_ascii=False, indent=4))
    write(root / "eval.json", json.dumps([talk(2, "Is it?", "Yes.")], ensure_ascii=False))
