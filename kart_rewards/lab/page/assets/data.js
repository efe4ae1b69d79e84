// The data of the page of kart-rewards lab: drives, their pictures, and what reward terms pay on them.
// It comes from the server, or, in a page that was written to disk, from elements of the page itself.
"use strict";

const $ = (id) => document.getElementById(id);

/** Makes an element. Text always becomes text nodes: nothing that comes from a file is ever parsed as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const grouped = (number) => number.toLocaleString("en-US");

/** A number in at most about seven characters. */
function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0"; // not -0
  const size = Math.abs(value);
  const digits = size >= 1000 || Number.isInteger(value) ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3;
  const text = size !== 0 && size < 0.0005 ? value.toExponential(0) : size >= 1e7 ? value.toExponential(1)
    : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return text.replace("-", "−");
}

// ---------------------------------------------------------------------------------------------------- data

const embedded = new Map([...document.querySelectorAll("script[data-name]")].map((each) => [each.dataset.name, each]));
const isEmbedded = embedded.has("state");

function embeddedBytes(name) {
  const text = embedded.get(name).textContent;
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const decoded = atob(text);
  return Uint8Array.from({ length: decoded.length }, (_, index) => decoded.charCodeAt(index));
}

const inflated = (bytes) => new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));

async function get(address) {
  return isEmbedded ? inflated(embeddedBytes(address)).json() : (await fetch(address)).json();
}

/** The bytes of a drive's pictures, as they come. */
async function* filmBytes(drive, signal) {
  const address = `drives/${drive}/pictures`;
  if (isEmbedded) {
    yield embeddedBytes(address);
    return;
  }
  const reader = (await fetch(address, { signal })).body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

/** Cuts the bytes of a film into parts: a letter, a length, and the content. See film_part in server.py. */
async function* filmParts(stream) {
  let rest = new Uint8Array(0);
  for await (const bytes of stream) {
    if (rest.length) {
      const joined = new Uint8Array(rest.length + bytes.length);
      joined.set(rest);
      joined.set(bytes, rest.length);
      rest = joined;
    } else rest = bytes;
    for (;;) {
      if (rest.length < 5) break;
      const length = new DataView(rest.buffer, rest.byteOffset).getUint32(1, true);
      if (rest.length < 5 + length) break;
      yield [String.fromCharCode(rest[0]), rest.subarray(5, 5 + length)];
      rest = rest.subarray(5 + length);
    }
  }
}

/** The pictures of a drive. They come in chunks, some of which are decoded when one of their frames is looked at. */
class Film {
  static BLOCK = 30; // frames
  static REST = 60; // milliseconds without another jump
  static KEPT = 480; // decoded pictures; one of 256 by 224 pixels takes 0.23 MB

  constructor(drive, changed) {
    this.changed = changed;
    this.format = null;
    this.error = "";
    this.frames = 0; // how many have come
    this.chunks = [];
    this.hasEnded = false; // whether no more frames come
    this.decoded = new Map(); // block of chunks -> its pictures; the one that was used last is the last
    this.only = null; // the frame that is decoded alone, in a jump
    this.single = null; // {frame, picture} of the last such frame
    this.wanted = 0;
    this.moved = 0; // from the frame that was wanted before
    this.isDecoding = false;
    this.leaving = new AbortController();
    this.read(drive).catch((error) => error.name === "AbortError" || this.fail(String(error)));
  }

  fail(message) {
    this.error ||= message;
    this.changed();
  }

  async read(drive) {
    for await (const [kind, content] of filmParts(filmBytes(drive, this.leaving.signal))) {
      if (kind === "C") {
        this.chunks.push(content);
        this.frames += new DataView(content.buffer, content.byteOffset).getUint32(0, true);
      } else if (kind === "E") this.error = new TextDecoder().decode(content);
      else await this.open(JSON.parse(new TextDecoder().decode(content)));
      this.decodeWanted();
      this.changed();
    }
    this.hasEnded = true;
    this.decodeWanted();
  }

  async open(format) {
    this.format = format;
    if (!window.VideoDecoder) throw "this browser can't show the pictures: it has no WebCodecs. Chrome 94, Firefox 130 and Safari 16.4 have it";
    const config = { codec: format.codec, hardwareAcceleration: "prefer-software", optimizeForLatency: true };
    if (!(await VideoDecoder.isConfigSupported(config)).supported) throw `this browser can't decode the pictures (${format.codec})`;
    this.canvas = new OffscreenCanvas(format.width, format.height);
    this.context = this.canvas.getContext("2d");
    this.decoder = new VideoDecoder({
      output: (picture) => {
        if (this.output.has(picture.timestamp)) {
          this.context.drawImage(picture, 0, 0);
          this.output.set(picture.timestamp, this.canvas.transferToImageBitmap());
        }
        if (picture.timestamp === this.only) {
          this.single?.picture.close();
          this.single = { frame: this.only, picture: this.output.get(this.only) };
        }
        if ([this.wanted, this.only].includes(picture.timestamp)) this.changed(); // not after the rest of the chunk
        picture.close();
      },
      error: (error) => this.fail(`the pictures can't be decoded: ${error.message}`),
    });
    this.decoder.configure(config);
  }

  /**
   * The picture of a frame, {frame, picture}. If it is not decoded yet, `changed` is called later, and the answer is
   * null or, while a person moves in large steps, the picture of an earlier step.
   */
  picture(frame) {
    if (frame !== this.wanted) {
      clearTimeout(this.rest);
      this.moved = frame - this.wanted;
      this.wanted = frame;
    }
    const block = Math.floor(frame / this.blockFrames);
    const pictures = this.decoded.get(block);
    if (pictures) {
      this.decoded.delete(block);
      this.decoded.set(block, pictures);
    }
    this.decodeWanted();
    if (pictures?.get(frame)) return { frame, picture: pictures.get(frame) };
    return this.single?.frame === frame || this.isJump ? this.single : null;
  }

  chunkOf(frame) {
    return Math.floor(frame / this.format.chunk_frames);
  }

  /** Frames that are decoded together when a person moves in small steps: some chunks. */
  get blockFrames() {
    return this.format ? Math.ceil(Film.BLOCK / this.format.chunk_frames) * this.format.chunk_frames : 0;
  }

  /** Whether a step is so large that to decode single pictures costs less than to decode all: half a chunk each. */
  get isJump() {
    return Boolean(this.format) && Math.abs(this.moved) >= this.format.chunk_frames / 2;
  }

  async decodeWanted() {
    if (this.isDecoding || !this.decoder || this.decoder.state === "closed") return;
    this.isDecoding = true;
    try {
      while (await this.decodeNext()) this.changed();
    } catch (error) {
      this.fail(`the pictures can't be decoded: ${error.message}`);
    }
    this.isDecoding = false;
  }

  /** Decodes what is needed next. Returns whether there was something to decode. */
  async decodeNext() {
    const { wanted, moved, isJump } = this;
    if (!this.chunks[this.chunkOf(wanted)]) return false; // it has not come yet
    const now = Math.floor(wanted / this.blockFrames);
    if (isJump && !this.decoded.has(now)) {
      // A jump: the picture is decoded alone. Those around it follow when no other jump does.
      if (this.single?.frame !== wanted) {
        await this.decodeOne(wanted);
        return true;
      }
      clearTimeout(this.rest);
      this.rest = setTimeout(() => {
        this.moved = 0;
        this.decodeWanted();
      }, Film.REST);
      return false;
    }
    const ahead = Math.sign(moved) || 1;
    const blocks = [now, now + ahead, now + 2 * ahead]; // a person will look there next
    const next = blocks.find((number) => this.isComplete(number) && !this.decoded.has(number));
    if (next !== undefined) await this.decode(next);
    else if (!this.decoded.has(now) && this.single?.frame !== wanted) await this.decodeOne(wanted);
    else return false;
    return true;
  }

  /** Whether all chunks of a block have come. */
  isComplete(block) {
    const first = block * this.blockFrames;
    return first >= 0 && first < this.frames && (this.hasEnded || first + this.blockFrames <= this.frames);
  }

  /** Decodes a picture alone: those before it in its chunk are decoded, too, but not converted. */
  async decodeOne(frame) {
    const number = this.chunkOf(frame);
    this.output = new Map([[frame, undefined]]);
    this.only = frame;
    this.feed(number, frame - number * this.format.chunk_frames + 1);
    await this.decoder.flush();
  }

  /** Sends the first pictures of a chunk to the decoder. */
  feed(number, most) {
    const chunk = this.chunks[number];
    const view = new DataView(chunk.buffer, chunk.byteOffset);
    const count = view.getUint32(0, true);
    for (let index = 0, start = 4 * (count + 1); index < Math.min(count, most); index += 1) {
      const size = view.getUint32(4 * (index + 1), true);
      const timestamp = number * this.format.chunk_frames + index; // the frame's number: the decoder hands it back
      this.decoder.decode(new EncodedVideoChunk({
        type: index ? "delta" : "key", timestamp, data: chunk.subarray(start, start + size),
      }));
      start += size;
    }
  }

  async decode(block) {
    const first = block * this.blockFrames;
    const last = Math.min(first + this.blockFrames, this.frames) - 1;
    this.only = null;
    this.output = new Map(Array.from({ length: last - first + 1 }, (_, index) => [first + index, undefined]));
    this.decoded.set(block, this.output);
    for (let number = this.chunkOf(first); number <= this.chunkOf(last); number += 1) this.feed(number, Infinity);
    await this.decoder.flush();
    for (const [old, pictures] of this.decoded) {
      if (this.decoded.size * this.blockFrames <= Film.KEPT) break;
      if (Math.abs(old - Math.floor(this.wanted / this.blockFrames)) <= 2) continue;
      pictures.forEach((picture) => picture?.close());
      this.decoded.delete(old);
    }
  }

  close() {
    clearTimeout(this.rest);
    this.leaving.abort();
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
    this.decoded.forEach((pictures) => pictures.forEach((picture) => picture?.close()));
    this.single?.picture.close();
    this.single = null;
    this.decoded.clear();
  }
}

/** A term of a scored drive, with what its charts need, computed when it is needed. */
class Term {
  constructor(term, end) {
    Object.assign(this, term);
    this.end = end;
    this.cache = new Map();
  }

  /** The values per frame: a Float64Array with `low` and `high`. */
  series(isRaw, isSummed) {
    const key = `${isRaw} ${isSummed}`;
    if (!this.cache.has(key)) {
      let values = Float64Array.from(this.values);
      if (isRaw) values = this.raw ? Float64Array.from(this.raw) : values.map((value) => value / this.weight);
      if (isSummed) for (let i = 1; i < values.length; i += 1) values[i] += values[i - 1];
      values.low = 0;
      values.high = 0;
      for (const value of values) {
        if (value < values.low) values.low = value;
        if (value > values.high) values.high = value;
      }
      this.cache.set(key, values);
    }
    return this.cache.get(key);
  }

  /** The frames on which it fired, without those that follow another: where a mark is. */
  get marks() {
    if (!this.cache.has("marks")) {
      const fired = this.raw ?? this.values;
      const marks = [];
      for (let i = 1; i < fired.length; i += 1) if (fired[i] && !fired[i - 1]) marks.push(i);
      this.cache.set("marks", marks);
    }
    return this.cache.get("marks");
  }

  sumOf(isRaw) {
    return isRaw ? (this.series(true, true)[this.end] ?? 0) : this.sum;
  }
}

const REWARD = "reward"; // the last row: all terms, after the transform

function scoreOf(content) {
  const { end, transformed } = content.summary;
  const terms = new Map(content.terms.map((term) => [term.name, new Term(term, end)]));
  const all = {
    name: REWARD, weight: null, values: content.rewards, raw: content.rewards, sum: transformed, source: "", where: "",
    summary: "what the agent gets of each frame: the sum of all terms, after the reward transform",
  };
  return { version: content.version, summary: content.summary, terms, all: new Term(all, end) };
}
