"""Whatever clients add, insert and delete while an answer waits or is written: the history has the order that they were told."""

import asyncio
import json
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.loop_calls import in_loop
from vita_audio_pl.serving.realtime import Session

OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.none() | st.integers(0, 9)),
    st.tuples(st.just("root"), st.none()),
    st.tuples(st.just("delete"), st.integers(0, 9)),
    st.tuples(st.just("instruct"), st.sampled_from(["", "the farm"])),
    st.tuples(st.just("answer"), st.none()),
    st.tuples(st.just("end"), st.none()),
    st.tuples(st.just("silence"), st.integers(0, 9)),
)


def test_the_history_has_the_order_that_clients_were_told(service):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(OPERATIONS, min_size=3, max_size=14))
    def check(operations):
        asyncio.run(follow(operations))

    async def follow(operations):
        told = []
        session = Session(service, lambda text, _: told.append(json.loads(text)), lambda _: None)
        order, goes_on = [], None

        async def take(**event):
            await session.take(json.dumps(event))

        async def end():
            nonlocal goes_on
            goes_on.set()
            goes_on = None
            while session.answering:
                await asyncio.sleep(0.002)

        def chosen(number, ids):
            return ids[number % len(ids)]

        for kind, value in operations:
            settled = [id for id in order if not (session._reply and session._reply.item_id == id)]
            if kind in ("add", "root"):
                previous = "root" if kind == "root" else chosen(value, order) if value is not None and order else None
                id = f"item_{len(told)}"
                item = {"id": id, "type": "message", "role": "user", "content": [{"type": "input_text", "text": "cow"}]}
                await take(type="conversation.item.create", item=item, previous_item_id=previous)
                place = len(order) if previous is None else 0 if previous == "root" else order.index(previous) + 1
                order.insert(place, id)
            elif kind == "delete" and settled:
                order.remove(id := chosen(value, settled))
                await take(type="conversation.item.delete", item_id=id)
            elif kind == "instruct":
                await take(type="session.update", session={"type": "realtime", "instructions": value})
            elif kind == "answer" and goes_on is None and any(r.item for r in session._records.values()):
                goes_on = threading.Event()
                service.engine.link.send(lambda loop, until=goes_on: until.wait())
                await take(type="response.create", response={"max_output_tokens": 12})
                order.append(session._reply.item_id)
            elif kind == "end" and goes_on is not None:
                await end()
            elif kind == "silence" and (spoken := [id for id in settled if session._records[id].whole]):
                await take(type="conversation.item.truncate", item_id=chosen(value, spoken), content_index=0, audio_end_ms=0)  # fmt: skip
        if goes_on is not None:
            await end()
        assert not [event for event in told if event["type"] == "error"]
        assert list(session._records) == order
        items = session.conversation.items
        there = [session._records[id].item for id in order if session._records[id].item in items]
        instructions = [session._instructions] if session._instructions else []
        assert items == instructions + there
        await session.close()

    check()
    in_loop(service)
    assert service.engine.asked == 0
