"""Corpora of Chinese speech with transcripts."""

import json
from pathlib import Path

from miniatures.base import Expected, miniature, sound, write


@miniature(
    "aishell1",
    train=Expected(["而对楼市成交抑制作用最大的限购", "b超"], 1.5, {"no transcript": 1, "unreadable audio": 1}),
    dev=Expected(["广州市房地产中介协会分析"], 0.5),
)
def aishell1(root: Path) -> None:
    """One list of transcripts cut into words for all parts; a speaker's archive is not unpacked."""
    lines = [
        ("train", "BAC009S0002W0122", " 而 对 楼市 成交 抑制 作用 最 大 的 限 购"),
        ("train", "BAC009S0723W0495", "  ｂ 超"),
        ("train", "BAC009S0723W0496", ""),
        ("", "BAC009S0700W0121", " 还 没有 解开"),
        ("dev", "BAC009S0724W0121", " 广州市 房地产 中介 协会 分析"),
        ("test", "BAC009S0764W0121", " 甚至 出现 交易 几乎 停滞 的 情况"),
        ("test", "BAC009S0916W0495", " 不 在"),
    ]
    for number, (part, name, _) in enumerate(lines):
        if part:
            path = root / f"data_aishell/wav/{part}/{name[6:11]}/{name}.wav"
            write(path, sound(1.0 if number == 0 else 0.5))
    text = "".join(f"{name}{text}\n" for _, name, text in lines)
    write(root / "data_aishell/transcript/aishell_transcript_v0.8.txt", text)
    write(root / "data_aishell/wav/S0700.tar.gz", b"\x1f\x8b")


@miniature(
    "aishell2",
    train=Expected(["厨房用品", "听YESTERDAY ONCE MORE"], 1.0, {"no transcript": 1, "unreadable audio": 1}),
    dev=Expected(["打开空调"], 0.5),
)
def aishell2(root: Path) -> None:
    """Tables of a key, a tab and the rest, without utt2spk."""
    said = {
        "data/IC0001W0001": "厨房用品",
        "data/IC0001W0065": "听YESTERDAY ONCE MORE",
        "data/IC0001W0066": "听广岛之恋",
        "data/IC0001W0067": "",
        "dev/IT0011W0001": "打开空调",
    }
    for part in ("data", "dev"):
        names = [key.split("/")[1] for key in said if key.startswith(part)]
        folder = root / "iOS" / part
        write(folder / "wav.scp", "".join(f"{name}\twav/{name[1:6]}/{name}.wav\n" for name in names))
        write(folder / "trans.txt", "".join(f"{name}\t{text}\n" for name in names if (text := said[f"{part}/{name}"])))
        for name in names:
            if name != "IC0001W0066":
                write(folder / f"wav/{name[1:6]}/{name}.wav", sound(0.5))


@miniature(
    "aishell3",
    train=Expected(["广州女大学生登山失联四天警方找到疑似女尸", "绿", "你好"], 2.0, {"unreadable audio": 1}),
    dev=Expected(["武术始终被看作我国的国粹"], 0.5),
)
def aishell3(root: Path) -> None:
    """content.txt of characters and pinyin in turn; recordings at 44.1 kHz in folders of speakers."""
    lines = [
        ("train", "SSB00050001", "广 guang3 州 zhou1 女 nv3 大 da4 学 xue2 生 sheng1 登 deng1 山 shan1 失 shi1 联 lian2 四 si4 天 tian1 "
         "警 jing3 方 fang1 找 zhao3 到 dao4 疑 yi2 似 si4 女 nv3 尸 shi1"),
        ("train", "SSB00050002", "绿 lv4"),
        ("train", "SSB00110001", "你 ni3 好 hao3 "),
        ("train", "SSB09990001", "再 zai4 见 jian4"),
        ("test", "SSB00050353", "武 wu3 术 shu4 始 shi3 终 zhong1 被 bei4 看 kan4 作 zuo4 我 wo3 国 guo2 的 de5 国 guo2 粹 cui4"),
    ]  # fmt: skip
    for part in ("train", "test"):
        write(root / part / "content.txt", "".join(f"{n}.wav\t{text}\n" for p, n, text in lines if p == part))
    for number, (part, name, _) in enumerate(lines):
        if not name.startswith("SSB0999"):
            write(root / f"{part}/wav/{name[:7]}/{name}.wav", sound(1.0 if number == 0 else 0.5, rate=44_100))
    write(root / "spk-info.txt", "# speaker age gender accent\nSSB0005\tC\tfemale\tnorth\n")
    write(root / "train/label_train-set.txt", "# header\nSSB00050001|guang3 zhou1 % nv3 $|广州%女$\n")


def textgrid(seconds: float, tiers: dict[str, list[tuple[float, float, str]]]) -> str:
    """A TextGrid in Praat's long form."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {seconds} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += ["        xmin = 0 ", f"        xmax = {seconds} ", f"        intervals: size = {len(intervals)} "]
        for nth, (start, end, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{nth}]:", f"            xmin = {start} ", f"            xmax = {end} "]
            lines += [f'            text = "{quoted}" ']
    return "\n".join(lines) + "\n"


@miniature(
    "aishell4",
    train=Expected(
        ["好那我们开始吧", '他说"行"', "嗯"],
        2.0,
        {"not a segment": 1, "damaged file": 1},
        {"no text left": 2, "high overlap": 2},
    ),
    dev=Expected(["散会"], 0.5),
)
def aishell4(root: Path) -> None:
    """Meetings of eight channels in FLAC; one TextGrid has an interval that ends before it starts, one is cut."""
    meetings = {
        "train_L/20200706_L_R001S01C01": {
            "001-M": [
                (0, 1, "好<sil>那我们<%>开始吧"),
                (1, 1.2, ""),
                (1.2, 1.5, "<sil>"),
                (2, 2.5, "你`说&"),
                (2.5, 4, ""),
            ],
            "002-F": [(0, 1.5, ""), (1.5, 2, '他说"行"'), (2.2, 2.6, "我觉得"), (2.6, 4, "<%>")],
        },
        "train_M/20200622_M_R002S07C01": {"001-M": [(0, 0.5, "嗯"), (2, 1.5, "对")]},
        "train_S/20200623_S_R001S01C01": {"003-F": [(0, 0.5, "断")]},
        "test/20200622_M_R002S09C01": {"001-M": [(0, 0.5, "散会")]},
    }
    for place, tiers in meetings.items():
        part, name = place.split("/")
        write(root / part / "wav" / f"{name}.flac", sound(4.0, format="FLAC", channels=8))
        grid = textgrid(4.0, {tier: list(intervals) for tier, intervals in tiers.items()})
        write(root / part / "TextGrid" / f"{name}.TextGrid", grid[: len(grid) - 60] if part == "train_S" else grid)
        write(root / part / "TextGrid" / f"{name}.rttm", f"SPEAKER {name} 1 0.0 1.0 <NA> <NA> 001-M <NA> <NA>\n")


@miniature(
    "wenetspeech",
    train=Expected(["吃上这么一顿", "OKAY 那就 THANK YOU"], 1.5, {"not a segment": 1}, {"other subset": 3}),
    dev=Expected(["来看一下"], 0.5, {}, {"other subset": 5}),
)
def wenetspeech(root: Path) -> None:
    """WenetSpeech.json of recordings in Opus; some segments are in no subset, and one recording has none at all."""
    segments = [
        {"sid": "Y0000000000_S00000", "begin_time": 0.5, "end_time": 1.5, "subsets": ["L", "M"], "text": "吃上这么一顿", "confidence": 1.0},
        {"sid": "Y0000000000_S00001", "begin_time": 1.5, "end_time": 2.0, "subsets": ["L"], "text": "OKAY 那就 THANK YOU", "confidence": 0.95},
        {"sid": "Y0000000000_S00002", "begin_time": 2.0, "end_time": 2.5, "subsets": [], "text": "不确定", "confidence": 0.6},
        {"sid": "Y0000000000_S00003", "begin_time": 2.5, "end_time": 2.5, "subsets": ["L"], "text": "空", "confidence": 1.0},
    ]  # fmt: skip
    audios = [
        audio("train/youtube/B00000", "Y0000000000_--5llN02F84", segments),
        audio("train/podcast/B00000", "X0000000001_27270968", []),
        audio(
            "dev/DEV_R001",
            "Y0000000002_dev",
            [
                {"sid": "DEV_S00000", "begin_time": 0, "end_time": 0.5, "subsets": ["DEV"], "text": "来看一下"},
                {"sid": "DEV_S00001", "begin_time": 1, "end_time": 1.5, "subsets": ["TEST_NET"], "text": "测试"},
            ],
        ),
    ]
    for entry in audios:
        write(root / str(entry["path"]), sound(3.0, format="OPUS"))
    whole = {"dataset": "WenetSpeech", "language": "ZH", "version": "v1.0", "audios": audios}
    write(root / "WenetSpeech.json", json.dumps(whole, ensure_ascii=False, indent=4))


def audio(folder: str, name: str, segments: list[dict[str, object]]) -> dict[str, object]:
    """A recording as WenetSpeech.json lists it."""
    url = f"https://www.youtube.com/watch?v={name}"
    told = {"aid": name, "duration": 3.0, "md5": "0" * 32, "path": f"audio/{folder}/{name}.opus", "source": "youtube"}
    return {**told, "tags": ["drama"], "url": url, "segments": segments}


@miniature(
    "wenetspeech4tts",
    train=Expected(
        ["那我情愿，无药可救。", "标准。", "基本！", "剩下的"], 2.5, {"no transcript": 1, "unreadable audio": 1}
    ),
)
def wenetspeech4tts(root: Path) -> None:
    """Packs in four folders; the list of Basic names those of Premium and Standard, whose own lists name them again."""
    said = {
        "Premium/WenetSpeech4TTS_Premium_0/X0000001735_50639692_S00035": "那我情愿，无药可救。",
        "Standard/WenetSpeech4TTS_Standard_3/X0000015306_83500032_S00110-S00112": "标准。",
        "Basic/WenetSpeech4TTS_Basic_11/Y0000000001_a_S00001": "基本！",
        "Basic/WenetSpeech4TTS_Basic_11/Y0000000001_a_S00002": "",
        "Basic/WenetSpeech4TTS_Basic_11/Y0000000001_a_S00003": "没有声音",
        "Rest/WenetSpeech4TTS_Rest_8/Y0000021148_sgfFHEnLHNs_S00595": "剩下的",
    }
    rows: dict[str, list[str]] = {"Premium": [], "Standard": [], "Basic": [], "Rest": []}
    for place, text in said.items():
        tier, pack, name = place.split("/")
        if text:
            write(root / tier / pack / "txts" / f"{name}.txt", f"{name}\t{text}\n\t0.00 0.25 0.50\n")
        if text != "没有声音":
            write(root / tier / pack / "wavs" / f"{name}.wav", sound(1.0 if tier == "Premium" else 0.5))
        row = f"{name}\t../{tier}/{pack}/wavs/{name}.wav\t../{tier}/{pack}/txts/{name}.txt\n"
        for held in {"Premium": ("Premium", "Standard", "Basic"), "Standard": ("Standard", "Basic")}.get(tier, (tier,)):
            rows[held].append(row)
    for tier, listed in rows.items():
        write(root / f"filelists/{tier}_filelist.lst", "".join(listed))
        write(root / f"DNSMOS_P808Scores/{tier}_DNSMOS.lst", "".join(f"{row.split()[0]}\t3.9\n" for row in listed))


@miniature(
    "mmcrsc",
    train=Expected(["然后呢到时候", "我要听歌"], 1.0, {"no transcript": 1, "not UTF-8": 1}, {"no text left": 1}),
    dev=Expected(["打开地图"], 0.5),
)
def mmcrsc(root: Path) -> None:
    """TRANS.txt with a header; transcripts cut into words, with tags; two utterances are known to be bad."""
    rows = [
        ("14_3466_20170826171159", "然后 呢 到 时候"),
        ("14_3466_20170826171160", "[FIL] 我 要 听\ufeff [SPK]歌"),
        ("14_3466_20170826171161", "[ FIL ]"),
        ("14_3466_20170826171162", ""),
        ("16_4013_20170819121429", "坏 的"),
    ]
    header = "UtteranceID\tSpeakerID\tTranscription\n"
    lines = [f"{name}.wav\t{name[:7]}\t{text}\n".encode() for name, text in rows]
    gbk = "14_3466_20170826171163.wav\t14_3466\t你好\n".encode("gbk")
    write(root / "train/TRANS.txt", header.encode() + b"".join(lines) + gbk)
    write(root / "dev/TRANS.txt", header + "5_541_20170607142131.wav\t5_541\t打开 地图\n")
    write(root / "dev/5_541/5_541_20170607142131.wav", sound(0.5))
    for name, _ in rows:
        write(root / f"train/{name[:7]}/{name}.wav", sound(0.5))
