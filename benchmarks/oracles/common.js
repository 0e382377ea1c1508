// What the oracles that run in node share: files in, definitions out, one JSON line a file.
'use strict';
const fs = require('fs');
const path = require('path');

// Byte offset and 1-based line of UTF-16 offsets of a text.
class Positions {
  constructor(text) {
    this.bytes = new Uint32Array(text.length + 1);
    this.lines = [0];
    for (let at = 0, bytes = 0; at < text.length; at += 1) {
      const code = text.charCodeAt(at);
      this.bytes[at] = bytes;
      const low = code >= 0xdc00 && code < 0xe000; // its pair's four bytes were counted
      const high = code >= 0xd800 && code < 0xdc00;
      bytes += code < 0x80 ? 1 : code < 0x800 ? 2 : high ? 4 : low ? 0 : 3;
      this.bytes[at + 1] = bytes;
      if (code === 10) this.lines.push(at + 1);
    }
  }

  line(at) {
    let low = 0;
    let high = this.lines.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.lines[middle] <= at) low = middle;
      else high = middle;
    }
    return low + 1;
  }
}

// Reads {root, paths} from standard input and writes {path, definitions} or {path, error}.
// `read` makes [{kind, names, start, end}] of (text, path), with UTF-16 offsets.
function run(read) {
  const { root, paths } = JSON.parse(fs.readFileSync(0, 'utf8'));
  for (const name of paths) {
    const text = fs.readFileSync(path.join(root, name), 'utf8');
    let found;
    try {
      found = read(text, name);
    } catch (error) {
      console.log(JSON.stringify({ path: name, error: String(error.message || error) }));
      continue;
    }
    const positions = new Positions(text);
    const definitions = found.map(({ kind, names, start, end }) => ({
      kind,
      names,
      line: positions.line(start),
      start: positions.bytes[start],
      end: positions.bytes[end],
      end_line: positions.line(end - 1),
    }));
    console.log(JSON.stringify({ path: name, definitions }));
  }
}

module.exports = { run };
