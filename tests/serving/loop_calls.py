"""What tests ask of a loop in a thread of this process."""

from concurrent.futures import Future


def in_loop(service, work=lambda decoder: None):
    """What `work(decoder)` returns in the loop's thread, between two rounds."""
    result = Future()
    service.engine.link.send(lambda loop: result.set_result(work(loop.decoder)))
    return result.result(60)


def slots_of(service):
    """Free slots, and those among them that hold the caches of a conversation."""
    return in_loop(service, lambda decoder: (decoder.free_slots, len(decoder._resting)))
