"""The page on another language or codec, command by command, after the demo in its smoke form."""

import re

import pytest

from tests.end_to_end.conftest import RUN, Place
from tests.end_to_end.doc_commands import ROOT, commands_of, write_yaml_of
from tests.end_to_end.test_documented_commands import small
from tests.patience import PATIENCE

PAGE = ROOT / "docs" / "another-language.md"


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
def test_the_small_world_goes_on_in_mandarin_and_begins_again_with_another_codec(copied_demo: Place) -> None:
    folder, text = copied_demo.folder, PAGE.read_text(encoding="utf-8")
    write_yaml_of(PAGE.stem, folder, "mandarin.yaml", "both_languages.yaml", "mandarin_alone.yaml")
    for name, block in zip(
        ("mandarin.py", "own_codec.py"), re.findall(r"```python\n(.*?)```", text, re.DOTALL), strict=True
    ):
        (folder / name).write_text(block, encoding="utf-8")
    prepare, go_on, prepare_again, begin_again = (small(command) for command in commands_of(PAGE))
    copied_demo.run("mandarin.py")
    assert "'mandarin' is ready" in copied_demo.run(*prepare)
    assert "stage 'sft' is done" in copied_demo.run(*go_on)
    copied_demo.run("own_codec.py")
    copied_demo.run(*prepare_again)
    refused = [*begin_again, "stage=sft", f"init_from={RUN}", "variant.parents.sft=[sft]", "run_name=refused"]
    with pytest.raises(AssertionError, match="cannot be the parent of stage 'sft': its vocabulary"):
        copied_demo.run(*refused)
    assert "stage 'align' is done" in copied_demo.run(*begin_again)
