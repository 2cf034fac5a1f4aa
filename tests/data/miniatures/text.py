"""Written questions, answers and chats."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from miniatures.base import Expected, miniature, write, write_parquet


def chat(*texts: str, system: str = "") -> str:
    """What `Expected.texts` says of a chat of these texts in turn."""
    turns = [f"{('user', 'assistant')[number % 2]}: {text}" for number, text in enumerate(texts)]
    return "\n".join([f"system: {system}", *turns] if system else turns)


def jsonl(path: Path, rows: Iterable[Any], ascii: bool = False) -> None:
    write(path, "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows))


def listed(path: Path, rows: Sequence[Any], **style: Any) -> None:
    """A file that is one list in JSON."""
    write(path, json.dumps(rows, **style))


def sharegpt(*values: Any, roles: Sequence[str] = ("human", "gpt"), **more: Any) -> list[dict[str, Any]]:
    return [{"from": roles[n % len(roles)], "value": value, **more} for n, value in enumerate(values)]


@miniature(
    "openhermes_2_5",
    train=Expected(
        [
            chat("Put a sound on the page", 'Write <audio src="a.mp3"> in it'),
            chat("Hello", "Arr", system="You are a pirate"),
            chat("one", "1", "two", "2"),
        ],
        skipped={"not a sample": 3},
    ),
)
def openhermes(root: Path) -> None:
    """One list; null fields of several sources; an empty answer, an answer that is null, and an unknown role."""
    rows = [
        sharegpt("Put a sound on the page", 'Write <audio src="a.mp3"> in it', weight=None),
        [{"from": "system", "value": "You are a pirate"}, *sharegpt("Hello", "Arr")],
        [{"from": "system", "value": ""}, *sharegpt("one", "1", "two", "2", weight=1.0)],
        sharegpt("Say nothing", ""),
        sharegpt("Say nothing", None),
        sharegpt("Call it", "{}", roles=("human", "function_call")),
    ]
    more: dict[str, Any] = dict.fromkeys(("id", "avatarUrl", "views", "hash", "topic", "title"))
    whole = [{"custom_instruction": None, "conversations": row, "source": "airoboros2.2", **more} for row in rows]
    listed(root / "openhermes2_5.json", whole, indent=2)


@miniature(
    "lima",
    train=Expected([chat("What birds sing?", "Larks."), chat("a", "b", "c", "d")], skipped={"not a sample": 1}),
)
def lima(root: Path) -> None:
    """Texts in turn; the test part has questions alone."""
    rows = [["What birds sing?", "Larks."], ["a", "b", "c", "d"], ["a", ""]]
    jsonl(root / "train.jsonl", ({"conversations": row, "source": "stackexchange"} for row in rows))
    jsonl(root / "test.jsonl", [{"conversations": ["Who?"], "source": "authors"}])


@miniature(
    "dolly_15k",
    train=Expected(
        [chat("Larks are birds.\nWhat are larks?", "Birds."), chat("Name a bird", "Lark")], skipped={"not a sample": 1}
    ),
)
def dolly(root: Path) -> None:
    rows = [
        ("What are larks?", "Larks are birds.\n", "Birds."),
        ("Name a bird", "", "Lark"),
        ("Name another", "", ""),
    ]
    made = ({"instruction": i, "context": c, "response": r, "category": "open_qa"} for i, c, r in rows)
    jsonl(root / "databricks-dolly-15k.jsonl", made, ascii=True)


@miniature("metamathqa", train=Expected([chat("1 + 1?", "1 + 1 = 2\n#### 2\nThe answer is: 2")] * 2))
def metamathqa(root: Path) -> None:
    """The same question comes twice, as rewritten questions do."""
    row = {"type": "GSM_Rephrased", "query": "1 + 1?", "original_question": "One and one?"}
    listed(root / "MetaMathQA-395K.json", [{**row, "response": "1 + 1 = 2\n#### 2\nThe answer is: 2"}] * 2, indent=4)


@miniature("mathinstruct", train=Expected([chat("Write a program.", "print(2)")], skipped={"not a sample": 2}))
def mathinstruct(root: Path) -> None:
    rows = [("Write a program.", "print(2)"), ("", "4"), ("2 + 2", 4)]
    listed(
        root / "MathInstruct.json",
        [{"source": "data/PoT/gsm.json", "output": answer, "instruction": text} for text, answer in rows],
    )


@miniature("orca_math", train=Expected([chat("Two birds and one?", "Three."), chat("None?", "0")]))
def orca_math(root: Path) -> None:
    rows = [{"question": "Two birds and one?", "answer": "Three."}, {"question": "None?", "answer": "0"}]
    write_parquet(root / "data/train-00000-of-00001.parquet", rows)


@miniature(
    "atlas_math_sets",
    train=Expected([chat("1 + 2", "1 + 2 = 3"), chat("9 / 2", "4.5")]),
    dev=Expected([chat("2 x 3", "6")]),
)
def atlas_math_sets(root: Path) -> None:
    rows = {"train": [("1 + 2", "1 + 2 = 3"), ("9 / 2", 4.5)], "val": [("2 x 3", "6")], "test": [("7 - 1", "6")]}
    for part, sums in rows.items():
        made = ({"output": output, "answer": str(output)[-1], "instruction": text} for text, output in sums)
        jsonl(root / f"data/atlas-math-{part}.jsonl", made)


@miniature("goat", train=Expected([chat("Work out 3 + 4", "3 + 4 = 7")]))
def goat(root: Path) -> None:
    row = {"instruction": "Work out 3 + 4", "input": "3 + 4", "output": "3 + 4 = 7", "answer": "7"}
    listed(root / "dataset.json", [row], separators=(",", ":"))


@miniature("camel_math", train=Expected([chat("Find x in x + 1 = 2.", "x = 1")]))
def camel_math(root: Path) -> None:
    """The conversion of the day, beside one of an earlier day and the database of the hub's viewer."""
    row = {"role_1": "Mathematician_RoleType.ASSISTANT", "topic;": "Algebra", "sub_topic": "Linear equations"}
    row |= {"message_1": "Find x in x + 1 = 2.", "message_2": "x = 1"}
    write_parquet(root / "default/train/0000.parquet", [row])
    write_parquet(root / "default/json-train.parquet", [row])
    write(root / "default/train/index.duckdb", b"DUCK")


@miniature(
    "infinity_instruct",
    train=Expected([chat("你好", "你好！有什么可以帮你？"), chat("a", "b", "c", "d", system="Be short.")]),
)
def infinity_instruct(root: Path) -> None:
    """Folders that hold the same rows again; ids are numbers; labels are objects of lists."""
    label = {"ability_en": ["chat"], "ability_zh": ["聊天"], "cate_ability_en": [], "cate_ability_zh": []}
    chats = [
        sharegpt("你好", "你好！有什么可以帮你？"),
        [{"from": "system", "value": "Be short."}, *sharegpt("a", "b", "c", "d")],
    ]
    rows = [
        {"id": number, "conversations": messages, "label": label, "langdetect": "zh-cn", "source": "Subjective"}
        for number, messages in enumerate(chats)
    ]
    for number, row in enumerate(rows):
        write_parquet(root / f"7M/train-{number:05d}-of-00002.parquet", [row])
    for folder in ("3M", "0625", "Gen", "7M_core", "7M_domains/code"):
        write_parquet(root / folder / "train-00000-of-00001.parquet", rows)


@miniature(
    "long_instruction",
    train=Expected(
        [
            chat("A long text.\nWho?", "It says so: she.", "When?", "In May."),
            chat("长文。\n谁？", "原文：她。"),
            chat("A chat", "of messages"),
        ],
        skipped={"not a sample": 1},
    ),
)
def long_instruction(root: Path) -> None:
    """Lists of questions and answers, or messages; a .json that holds a row a line; what the other archives hold."""
    folder = root / "long_instruction_paraphrasing"
    listed(
        folder / "en/multi_doc_qa.json",
        [
            {"context": "A long text.", "questions": ["Who?", "When?"], "answers": ["It says so: she.", "In May."]},
            {"context": "A long text.", "questions": ["Who?", "When?"], "answers": ["She."]},
        ],
    )
    jsonl(folder / "zh/paper_qa.json", [{"context": "长文。", "questions": ["谁？"], "answers": ["原文：她。"]}])
    messages = [{"role": "user", "content": "A chat"}, {"role": "assistant", "content": "of messages"}]
    jsonl(folder / "zh/sharegpt.jsonl", [{"messages": messages}])
    jsonl(root / "long_instruction_no_paraphrasing/zh/sharegpt.jsonl", [{"messages": messages}])
    for name in ("paraphrasing", "no_paraphrasing", "paraphrasing_slim"):
        write(root / f"long_instruction_{name}.zip", b"PK\x05\x06" + bytes(18))


@miniature(
    "longform",
    train=Expected([chat("Tell of larks", "Larks sing.")], skipped={"not a sample": 1}),
    dev=Expected([chat("Tell of owls", "Owls hoot.")]),
)
def longform(root: Path) -> None:
    rows = {
        "train": [("Tell of larks", "Larks sing."), ("Tell of none", "")],
        "validation": [("Tell of owls", "Owls hoot.")],
    }
    for part, told in {**rows, "test": [("Tell of rooks", "Rooks caw.")]}.items():
        made = [{"input": i, "output": o, "source": "C4", "subset": "c4"} for i, o in told]
        write_parquet(root / f"data/{part}-00000-of-00001-367270308b568067.parquet", made)


def role_content(*texts: str) -> list[Mapping[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


LONG = "A long text. " * 300


@miniature("longalign_10k", train=Expected([chat(f"{LONG}\n\nWho?", "She."), chat("长\u2028文", "好")]))
def longalign(root: Path) -> None:
    """A separator of lines of Unicode stands inside a text."""
    chats = [role_content(f"{LONG}\n\nWho?", "She."), role_content("长\u2028文", "好")]
    jsonl(root / "long.jsonl", ({"messages": messages, "length": 900} for messages in chats))


@miniature(
    "longcite_45k",
    train=Expected([chat("<C0>Larks sing. <C1>Owls hoot.\n\nWho?", "<statement>Larks.<cite>[0-0]</cite></statement>")]),
)
def longcite(root: Path) -> None:
    """The tags of the citations are learnt; an earlier revision's sample lies beside the file."""
    row = {
        "prompt": "<C0>Larks sing. <C1>Owls hoot.\n\nWho?",
        "response": "<statement>Larks.<cite>[0-0]</cite></statement>",
    }
    for name in ("long.jsonl", "long_sample.jsonl"):
        jsonl(root / name, [row])


@miniature("longwriter_6k", train=Expected([chat("Write a book", LONG.strip())]))
def longwriter(root: Path) -> None:
    jsonl(root / "long.jsonl", [{"messages": role_content("Write a book", LONG.strip())}])


@miniature("longqlora", train=Expected([chat("Sum it up: larks sing", "Larks.")], skipped={"not a sample": 1}))
def longqlora(root: Path) -> None:
    rows = [("Sum it up: larks sing", "Larks."), ("\n", "Nothing.")]
    jsonl(root / "LongQLoRA-SFT-Data-39k.jsonl", ({"input": i, "output": o, "source": "booksum"} for i, o in rows))
    jsonl(root / "LongQLoRA-Pretrain-Data-54k.jsonl", [{"text": LONG}])
    write(root / "pg19-test.bin", b"\x01\x02")


@miniature("longalpaca_12k", train=Expected([chat("Below is a paper. Who wrote it?", "She did.")]))
def longalpaca(root: Path) -> None:
    row = {"instruction": "Below is a paper. Who wrote it?", "output": "She did.", "input": "", "file": "paper.txt"}
    listed(root / "LongAlpaca-12k.json", [row], indent=4)
    write_parquet(root / "default/train/0000.parquet", [row])


@miniature(
    "long_data_collections",
    train=Expected(
        [chat("A book.\n\nQ: Sum it up?\nA:", "Larks sing."), chat("Documents. Question: who", "Answer: she")]
    ),
)
def long_data_collections(root: Path) -> None:
    """Decompressed files beside the compressed ones, and the texts for pretraining."""
    rows = {
        "booksum": ("A book.\n\nQ: Sum it up?\nA:", "Larks sing."),
        "natural_questions_10_200_docs": ("Documents. Question: who", "Answer: she"),
    }
    for name, (prompt, completion) in rows.items():
        jsonl(
            root / f"fine-tune/{name}.jsonl",
            [{"text": prompt + completion, "prompt": prompt, "completion": completion}],
        )
        write(root / f"fine-tune/{name}.jsonl.zst", b"\x28\xb5\x2f\xfd")
    write(root / "pretrain/arxiv_doc_to_abs.jsonl.zst", b"\x28\xb5\x2f\xfd")
