"""Corpora of English speech with transcripts."""

import json
from pathlib import Path

from miniatures.base import Expected, miniature, sound, write, write_parquet, write_tar


@miniature(
    "librispeech",
    train=Expected(["chapter sixteen i might have told you", "we'll go", "he was tall"], 2.0),
    dev=Expected(["mister quilter"], 0.5),
)
def librispeech(root: Path) -> None:
    """SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac and one .trans.txt a chapter."""
    said = {
        "train-clean-100/103/1240/103-1240-0000": (0.5, "CHAPTER SIXTEEN I MIGHT HAVE TOLD YOU"),
        "train-clean-360/14/208/14-208-0000": (1.0, "WE'LL GO"),
        "train-other-500/20/205/20-205-0000": (0.5, "HE WAS TALL"),
        "dev-clean/1272/128104/1272-128104-0000": (0.5, "MISTER QUILTER"),
        "test-clean/61/70968/61-70968-0000": (0.5, "NEVER READ"),
    }
    for name, (seconds, text) in said.items():
        path = root / f"{name}.flac"
        write(path, sound(seconds, format="FLAC"))
        speaker, chapter, _ = path.stem.split("-")
        write(path.parent / f"{speaker}-{chapter}.trans.txt", f"{path.stem} {text}\n")
    for name in ("BOOKS.TXT", "CHAPTERS.TXT", "LICENSE.TXT", "README.TXT", "SPEAKERS.TXT"):
        write(root / name, "about the corpus\n")


def _libritts(root: Path) -> None:
    """SPLIT/SPEAKER/CHAPTER/*.wav, with two texts beside each, and of each chapter .trans.tsv and .book.tsv."""
    said = {
        "train-clean-100/103/1241/103_1241_000000_000001": (0.6, "Mr. Cuthbert", "Mister Cuthbert"),
        "train-clean-360/14/208/14_208_000001_000000": (0.5, "At 5 o'clock.", "At five o'clock."),
        "train-other-500/20/205/20_205_000000_000002": (0.5, "Yes!", "Yes!"),
        "dev-clean/84/121123/84_121123_000007_000001": (0.5, "Maximilian.", "Maximilian."),
    }
    for name, (seconds, original, normalized) in said.items():
        path = root / f"{name}.wav"
        write(path, sound(seconds, 24_000))
        write(path.with_suffix(".original.txt"), original)
        write(path.with_suffix(".normalized.txt"), normalized)
        chapter = "_".join(path.stem.split("_")[:2])
        write(path.parent / f"{chapter}.trans.tsv", f"{path.stem}\t{original}\t{normalized}\n")
        write(path.parent / f"{chapter}.book.tsv", f"{path.stem}\t{original}\t{normalized}\t0\t12.5\n")
        write(path.parent / f"._{path.name}", b"\0\5\x16\7")
    write(root / "speakers.tsv", "READER\tGENDER\tSUBSET\tNAME\n")


for _name in ("libritts", "libritts_r"):
    miniature(
        _name,
        train=Expected(["Mister Cuthbert", "At five o'clock.", "Yes!"], 1.6),
        dev=Expected(["Maximilian."], 0.5),
    )(_libritts)


@miniature(
    "gigaspeech",
    train=Expected(
        ["as they're leaving, can kash pull zahra aside really quickly?", "yeah."],
        1.5,
        filtered={"other subset": 2, "refused text": 1},
    ),
    dev=Expected(["douglas mcgray."], 0.5, filtered={"other subset": 3, "refused text": 1}),
)
def gigaspeech(root: Path) -> None:
    """GigaSpeech.json: recordings with segments, capitals, and tags for punctuation and for what is no speech."""

    def recording(aid: str, path: str, segments: list[tuple[float, float, str, list[str]]]) -> dict:
        write(root / path, sound(3.0, format="OPUS"))
        return {
            "title": "N/A", "url": "N/A", "path": path, "aid": aid, "source": "podcast", "codec": "opus", "channels": 1,
            "duration": 3.0, "md5": "0" * 32, "speaker": "N/A", "category": "N/A", "sample_rate": 16000, "format": "opus",
            "subsets": sorted({subset for *_, subsets in segments for subset in subsets}),
            "segments": [
                {"sid": f"{aid}_S{n:07}", "speaker": "N/A", "begin_time": begin, "end_time": end, "subsets": subsets, "text_tn": text}
                for n, (begin, end, text, subsets) in enumerate(segments)
            ],
        }  # fmt: skip

    audios = [
        recording(
            "POD0000000001",
            "audio/podcast/P0000/POD0000000001.opus",
            [
                (0.5, 1.5, "AS THEY'RE LEAVING <COMMA> CAN KASH PULL ZAHRA ASIDE REALLY QUICKLY <QUESTIONMARK>", ["{XL}", "{L}"]),
                (1.5, 2.0, "YEAH <PERIOD>", ["{XL}"]),
                (2.0, 2.5, "<MUSIC>", ["{XL}"]),
            ],
        ),
        recording(
            "POD1000000004",
            "audio/podcast/P0001/POD1000000004.opus",
            [(0.0, 0.5, "DOUGLAS MCGRAY <PERIOD>", ["{DEV}"]), (0.5, 1.0, "<SIL>", ["{DEV}"])],
        ),
    ]  # fmt: skip
    corpus = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    write(root / "GigaSpeech.json", json.dumps(corpus, indent=2))


@miniature(
    "gigaspeech",
    "as on the hub",
    train=Expected(["as you can see,", "it's mine!"], 1.0, filtered={"refused text": 1}),
    dev=Expected(["douglas mcgray."], 0.5),
)
def gigaspeech_hub(root: Path) -> None:
    """Compressed tars of segments, a CSV for each; a subset is the smaller ones and a folder of what it adds."""
    columns = (
        "sid,speaker,begin_time,end_time,text_tn,title,url,path,aid,source,codec,channels,md5,category,sample_rate"
    )
    for part, more, rows in (
        ("xs", "", {"YOU0000000006_S0000050": "AS YOU CAN SEE <COMMA>"}),
        ("xl", "_additional", {"POD0000000007_S0000001": "IT'S MINE <EXCLAMATIONPOINT>", "POD0000000007_S0000002": "<SIL>"}),
        ("dev", "", {"POD1000000004_S0000000": "DOUGLAS MCGRAY <PERIOD>"}),
        ("test", "", {"POD1000000008_S0000000": "NEVER READ"}),
    ):  # fmt: skip
        chunk = f"{part}_chunks_0000"
        lines = [f'{sid},N/A,0.5,1.0,{text},"A title, with a comma",N/A,p,{sid[:13]},podcast,mp3,1,0,N/A,16000' for sid, text in rows.items()]  # fmt: skip
        write(root / f"data/metadata/{part}_metadata{more}/{chunk}_metadata.csv", "\n".join([columns, *lines]) + "\n")
        write_tar(
            root / f"data/audio/{part}_files{more}/{chunk}.tar.gz", {f"{chunk}/{sid}.wav": sound(0.5) for sid in rows}
        )


@miniature(
    "peoples_speech",
    train=Expected(["i wanted this to share a few things"], 0.5, skipped={"no transcript": 1}),
    dev=Expected(["the meeting is open"], 0.5),
)
def peoples_speech(root: Path) -> None:
    """A folder of parquet for each configuration; validation and test are configurations, too."""

    def rows(name: str, *texts: str) -> list[dict]:
        audio = {"bytes": sound(0.5, format="FLAC"), "path": f"{name}.flac"}
        return [{"id": f"{name}_{n}.flac", "audio": audio, "duration_ms": 500, "text": text} for n, text in enumerate(texts)]  # fmt: skip

    write_parquet(root / "clean/train-00000-of-00804.parquet", rows("a", "i wanted this to share a few things", ""))
    for part in ("clean_sa", "dirty", "dirty_sa", "microset"):
        write_parquet(root / f"{part}/train-00000-of-00001.parquet", rows("b", "never read"))
    write_parquet(root / "validation/validation-00000-of-00005.parquet", rows("c", "the meeting is open"))
    write_parquet(root / "test/test-00000-of-00009.parquet", rows("d", "never read"))


VOXPOPULI = {
    "train": Expected(["thank you, mr president.", "the vote is closed"], 1.0),
    "dev": Expected(["i agree"], 0.5),
}
_PLENARY = [
    ("20180315-0900-PLENARY-3-en_20180315-10:36:12_5", "Thank you, Mr President.", "thank you, mr president.", "train"),
    ("20190116-0900-PLENARY-9-en_20190116-11:02:05_1", "", "the vote is closed", "train"),
    ("20120417-0900-PLENARY-5-en_20120417-09:31:55_3", "I agree", "i agree", "dev"),
    ("20120417-0900-PLENARY-5-en_20120417-09:31:55_4", "Never read", "never read", "test"),
]


@miniature("voxpopuli", "as its own scripts write it", **VOXPOPULI)
def voxpopuli(root: Path) -> None:
    """Tables of each split, and pieces by year beside the long recordings that they were cut from."""
    for split in ("train", "dev", "test"):
        lines = ["id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"]
        for id, raw, text, where in _PLENARY:
            if where == split:
                write(root / f"transcribed_data/en/{id[:4]}/{id}.ogg", sound(0.5, format="OGG"))
                lines.append(f"{id}\t{raw}\t{text}\t4535\t{split}\tmale")
        write(root / f"transcribed_data/en/asr_{split}.tsv", "\n".join(lines) + "\n")
    write(root / "raw_audios/original/2018/20180315-0900-PLENARY-3_original.ogg", sound(1.0, format="OGG"))


@miniature("voxpopuli", "as on the hub", **VOXPOPULI)
def voxpopuli_hub(root: Path) -> None:
    """Tables of each split beside compressed tars of WAV."""
    for split in ("train", "dev", "test"):
        rows = [row for row in _PLENARY if row[3] == split]
        lines = ["id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"]
        lines += [f"{id}\t{raw}\t{text}\t4535\t{split}\tmale\tTrue\tNone" for id, raw, text, _ in rows]
        write(root / f"data/en/asr_{split}.tsv", "\n".join(lines) + "\n")
        write_tar(
            root / f"data/en/{split}/{split}_part_0.tar.gz",
            {f"{split}_part_0/{row[0]}.wav": sound(0.5) for row in rows},
        )


MLS = {
    "train": Expected(["oh my dear you must see him", "he said"], 1.0, skipped={"unreadable audio": 1}),
    "dev": Expected(["the end"], 0.5),
}


def _mls(corpus: Path, format: str) -> None:
    """SPLIT/transcripts.txt of all recordings, in no order, and SPLIT/audio/SPEAKER/BOOK/*; one is missing."""
    said = {
        "train": {"4800_10003_000000": "oh my dear you must see him", "99_1232_000004": "he said", "4800_10003_000001": "?"},
        "dev": {"5778_12761_000047": "the end"},
        "test": {"5639_40744_000000": "never read"},
    }  # fmt: skip
    for split, transcripts in said.items():
        for id, text in transcripts.items():
            speaker, book, _ = id.split("_")
            if text != "?":
                write(
                    corpus / f"{split}/audio/{speaker}/{book}/{id}.{format.lower()}",
                    sound(0.5, format=format),
                )
        write(corpus / f"{split}/transcripts.txt", "".join(f"{id}\t{text}\n" for id, text in transcripts.items()))
        write(corpus / f"{split}/segments.txt", "")
    write(corpus / "train/limited_supervision/9hr/handles.txt", "4800_10003_000000\n")
    write(corpus / "metainfo.txt", " SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID   | TITLE\n")


@miniature("mls", "in Opus", **MLS)
def mls(root: Path) -> None:
    _mls(root / "mls_english_opus", "OPUS")


@miniature("mls", "in FLAC", **MLS)
def mls_flac(root: Path) -> None:
    _mls(root / "mls_english", "FLAC")


COMMON_VOICE = {
    "train": Expected(['"Two" is a number.', "我们走吧。"], 1.0),
    "dev": Expected(["Is it?", "是吗？"], 1.0),
}
_SENTENCES = {
    ("en", "train"): ("common_voice_en_19731809.mp3", '"""Two"" is a number."'),
    ("zh-CN", "train"): ("common_voice_zh-CN_33211326.mp3", "我们走吧。"),
    ("en", "dev"): ("common_voice_en_27710027.mp3", "Is it?"),
    ("zh-CN", "dev"): ("common_voice_zh-CN_18527337.mp3", "是吗？"),
    ("en", "test"): ("common_voice_en_27710028.mp3", "Never read."),
}
_COLUMNS = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"


def _table(language: str, path: str, sentence: str) -> str:
    return f"{_COLUMNS}\n{'0f' * 64}\t{path}\t{'a1' * 32}\t{sentence}\t\t2\t0\ttwenties\t\t\t\t{language}\t\n"


@miniature("common_voice", "as Mozilla ships it", **COMMON_VOICE)
def common_voice(root: Path) -> None:
    """One folder of clips and a table a split, per language."""
    for (language, split), (path, sentence) in _SENTENCES.items():
        folder = root / f"cv-corpus-17.0-2024-03-15/{language}"
        write(folder / f"clips/{path}", sound(0.5, 32_000, "MP3"))
        write(folder / f"{split}.tsv", _table(language, path, sentence))
        write(folder / "validated.tsv", _table(language, path, sentence))


@miniature("common_voice", "as on the hub", **COMMON_VOICE)
def common_voice_hub(root: Path) -> None:
    """Tars of clips, and tables in a tree of their own."""
    for (language, split), (path, sentence) in _SENTENCES.items():
        stem = f"{language}_{split}_0"
        write_tar(root / f"audio/{language}/{split}/{stem}.tar", {f"{stem}/{path}": sound(0.5, 32_000, "MP3")})
        write(root / f"transcript/{language}/{split}.tsv", _table(language, path, sentence))


@miniature("globe", train=Expected(["It was a mistake."], 0.5), dev=Expected(["He knew it."], 0.5))
def globe(root: Path) -> None:
    """Parquet of three splits."""
    for split, text in {"train": "It was a mistake.", "val": "He knew it.", "test": "Never read."}.items():
        row = {
            "audio": {"bytes": sound(0.5, 24_000), "path": f"{split}.wav"}, "speaker_id": "S_000658", "transcript": text,
            "accent": "United States English", "duration": 0.5, "age": "twenties", "gender": "male",
        }  # fmt: skip
        write_parquet(root / f"data/{split}-00000-of-00001.parquet", [row])
