// Two processors: one takes the microphone in, one plays what comes and counts what was really played.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate / 25));  // 40 ms
    this.filled = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (!channel) return true;
    for (let at = 0; at < channel.length;) {
      const count = Math.min(channel.length - at, this.block.length - this.filled);
      this.block.set(channel.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.reset();
    this.port.onmessage = ({ data }) => {
      if (data.wave) this.queue.push(data.wave);
      if (data.ended) this.ended = true;
      if (data.clear) {
        this.port.postMessage({ cleared: true, played: this.played });
        this.reset();
      }
    };
  }

  reset() {
    this.queue = [];
    this.at = this.played = this.silent = this.gap = 0;
    this.ended = false;
  }

  process(_, outputs) {
    const out = outputs[0][0];
    let done = 0;
    while (done < out.length && this.queue.length) {
      const wave = this.queue[0];
      const count = Math.min(out.length - done, wave.length - this.at);
      out.set(wave.subarray(this.at, this.at + count), done);
      done += count;
      this.at += count;
      if (this.at === wave.length) { this.queue.shift(); this.at = 0; }
    }
    if (done && !this.played) this.port.postMessage({ began: true });
    if (done && this.silent) {  // sound goes on after it had run out: somebody heard a gap
      this.gap = Math.max(this.gap, this.silent);
      this.port.postMessage({ gap: this.gap / sampleRate });
      this.silent = 0;
    }
    this.played += done;
    if (this.played && done < out.length) {
      if (this.ended) { this.port.postMessage({ finished: true, played: this.played }); this.reset(); }
      else this.silent += out.length - done;
    }
    return true;
  }
}

registerProcessor("capture", Capture);
registerProcessor("playback", Playback);
