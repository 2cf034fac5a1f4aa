"""The page in a browser: written and spoken questions, an answer that is heard, interrupted and gone on from."""

import numpy as np
import pytest
import soundfile

from vita_audio_pl.codecs.audio import read_audio

CHROMIUM = "/usr/bin/chromium"


@pytest.mark.slow
def test_the_page_asks_plays_and_interrupts_by_keyboard_and_microphone(server, answered, smoke_world, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    voice = read_audio(min((smoke_world / "audio").glob("*/*.flac")), 48_000)
    microphone = tmp_path / "microphone.wav"
    soundfile.write(microphone, np.concatenate([voice, np.zeros(48_000, np.float32)]), 48_000, subtype="PCM_16")
    arguments = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        faults, addresses = [], []
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(server.url.removesuffix("/v1").replace("127.0.0.1", "localhost"))
        page.focus("#text")
        page.keyboard.type("where is the cow")
        page.keyboard.press("Enter")
        page.wait_for_selector(".turn.assistant .codes i", timeout=0)
        page.wait_for_selector("#state:text-is('ready')", timeout=0)  # it was played
        assert page.inner_text("#first").endswith(" ms")
        bars = page.locator(".turn.assistant .codes i").count()
        assert bars == answered[0][1].generation.codes(server.service.loaded.vocabulary).size
        page.select_option("#mode", "vanilla")
        page.select_option("#verify", "greedy")
        page.locator("#turns").focus()
        page.keyboard.down("Space")
        page.keyboard.up("Space")  # before the microphone is open: nobody is listened to who does not hold
        page.wait_for_selector("#state:text('while you speak')", timeout=0)
        assert page.get_attribute("#talk", "aria-pressed") == "false"
        page.keyboard.down("Space")
        page.wait_for_selector("#level[style*='scaleY(0.']", timeout=0, state="attached")  # the microphone is heard
        page.wait_for_timeout(1000)
        page.keyboard.up("Space")
        page.wait_for_selector(".turn.assistant:nth-of-type(4)", timeout=0)
        page.keyboard.press("Escape")
        page.locator("#text").fill("who sees the cow")
        page.keyboard.press("Enter")
        page.wait_for_selector(".turn.assistant:nth-of-type(6)", timeout=0)
        page.wait_for_selector("#state:text-is('ready')", timeout=0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        unnamed = (
            "[...document.querySelectorAll('button,input,select')].filter(e => !(e.labels?.length || e.innerText))"
        )
        assert page.evaluate(f"{unnamed}.length") == 0  # a screen reader has a name for everything
        browser.close()
    assert not faults
    assert all("localhost" in address for address in addresses)
    modes = [ticket.options.verify for ticket, _ in answered if ticket.options.max_new_tokens]
    assert "greedy" in modes and all(ended.error is None for _, ended in answered)


@pytest.mark.slow
def test_the_page_says_what_is_wrong_with_a_key_and_that_the_server_has_gone(run_server, make_service, monkeypatch):
    playwright = pytest.importorskip("playwright.sync_api")
    monkeypatch.setenv("VITA_AUDIO_PL_API_KEYS", "a+b/(c)=")
    server = run_server(make_service())
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url.removesuffix("/v1"))

        def send():
            page.locator("#text").fill("where is the cow")
            page.keyboard.press("Enter")

        for key, told in (("", "the server asks for a key"), ("wrong", "this key is not the server's")):
            page.fill("#key", key)
            send()
            page.wait_for_selector(f'#state:text("{told}")', timeout=0)
            assert page.input_value("#text") == "where is the cow"
        page.fill("#key", "a+b/(c)=")
        send()
        page.wait_for_selector("#state:text-is('ready')", timeout=0)
        server.stop()
        page.wait_for_selector("#state:text('closed')", timeout=0)
        send()
        page.wait_for_selector("#state:text('the server cannot be reached')", timeout=0)
        browser.close()


@pytest.mark.slow
def test_what_is_refused_is_shown_and_kept_and_nothing_answers_it(run_server, make_service):
    playwright = pytest.importorskip("playwright.sync_api")
    server = run_server(make_service(limits={"audio_seconds": 1}))
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page()
        page.goto(server.url.removesuffix("/v1").replace("127.0.0.1", "localhost"))

        def send(text):
            page.locator("#text").fill(text)
            page.keyboard.press("Enter")

        send("where is the cow")
        page.wait_for_selector(".turn.assistant", timeout=0)
        page.wait_for_selector("#state:text-is('ready')", timeout=0)
        assert page.input_value("#text") == ""
        send("<|audio|>")
        page.wait_for_selector("#state:text('<|audio|>')", timeout=0)
        assert page.input_value("#text") == "<|audio|>"
        page.locator("#turns").focus()
        page.keyboard.down("Space")
        page.wait_for_selector("#state:text('is longer than the 1 s allowed')", timeout=0)
        assert page.get_attribute("#talk", "aria-pressed") == "false"
        page.keyboard.up("Space")
        page.wait_for_function("document.querySelector('#level').style.transform === 'scaleY(0)'", timeout=0)
        assert "is longer than" in page.inner_text("#state")
        send("who sees the cow")  # the server takes messages in turn: whatever was asked before is answered before
        page.wait_for_selector(".turn:nth-of-type(4)", timeout=0)
        page.wait_for_selector("#state:text-is('ready')", timeout=0)
        assert page.locator(".turn .who").all_inner_texts() == ["You", "Model"] * 2
        assert page.locator(".turn.user .text").all_inner_texts() == ["where is the cow", "who sees the cow"]
        browser.close()
    server.stop()
