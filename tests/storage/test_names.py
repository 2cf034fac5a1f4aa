"""Whatever people call things, their files stay in their folder, can be written, and are each their own."""

from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.storage.names import safe_name, storable

NAMES = (
    st.text(max_size=20)
    | st.text("a./\\\0\ud83d~é你", max_size=20)
    | st.sampled_from(["..", ".", "", "a/b", "a_b", "x" * 400])
)


@given(one=NAMES, other=NAMES)
def test_a_name_is_one_part_of_a_path_and_tells_texts_apart(one, other):
    name = safe_name(one)
    assert name and "/" not in name and "\0" not in name and not name.startswith(".") and len(name.encode()) < 200
    assert (name == safe_name(other)) == (one == other)
    assert safe_name(name) == name


@given(NAMES)
def test_a_stored_text_is_utf8_and_the_same_where_it_can_be(text):
    assert storable(storable(text)) == storable(text) == storable(text).encode().decode()
    assert storable("x\ud83d") == "x\\ud83d" and storable("你é") == "你é"
