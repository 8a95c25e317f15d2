// A Node server: requests, streams, uploads and WebSockets, with nothing but Node's own library. Its
// books are those of books.py.
//
//     BOOKS=file node node_app.js PORT
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');

const books = fs.openSync(process.env.BOOKS, 'a');

class Entry {
  constructor(request) {
    this.name = `${request.method} ${request.url.split('?')[0]}`;
    this.body = 0;
    this.over = false;
    fs.writeSync(books, `+ ${this.name}\n`);
  }
  ends() {
    if (this.over) return;
    this.over = true;
    fs.writeSync(books, `- ${this.name} ${this.body}\n`);
  }
}

const server = http.createServer((request, response) => {
  const entry = new Entry(request);
  // Whoever asked has gone. Counted before Node confirms it with a FIN of its own.
  const gone = () => entry.ends();
  request.socket.prependOnceListener('end', gone);
  response.on('close', () => {
    request.socket.removeListener('end', gone);
    entry.ends();
  });
  const url = new URL(request.url, 'http://app');
  const number = (name, otherwise) => Number(url.searchParams.get(name) ?? otherwise);
  const end = (body) => {
    entry.ends();
    response.setHeader('Content-Length', Buffer.byteLength(body));
    response.end(body);
  };
  switch (url.pathname) {
    case '/work':
      setTimeout(end, number('ms', 20), 'worked');
      break;
    case '/bytes':
      end(Buffer.alloc(number('n', 0), 'x'));
      break;
    case '/stream':
    case '/events': {
      const events = url.pathname === '/events';
      response.setHeader('Content-Type', events ? 'text/event-stream' : 'text/plain');
      let left = number('n', 10);
      const timer = setInterval(() => {
        response.write(events ? 'data: part\n\n' : 'part\n');
        if (--left > 0) return;
        clearInterval(timer);
        entry.ends();
        response.end();
      }, number('ms', 10));
      response.on('close', () => clearInterval(timer));
      break;
    }
    default: {
      const digest = crypto.createHash('sha256');
      request.on('data', (part) => {
        entry.body += part.length;
        digest.update(part);
      });
      request.on('end', () => {
        end(url.pathname === '/upload' ? `${entry.body} ${digest.digest('hex')}\n` : 'ok');
      });
    }
  }
});

// RFC 6455, frame by frame: data comes back as it came, a ping is answered, a close is confirmed.
server.on('upgrade', (request, socket, head) => {
  const entry = new Entry(request);
  const key = request.headers['sec-websocket-key'];
  if (request.headers.upgrade?.toLowerCase() !== 'websocket' || !key) {
    entry.ends();
    return socket.destroy();
  }
  const accept = crypto.createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
    `Sec-WebSocket-Accept: ${accept.digest('base64')}\r\n\r\n`);
  socket.setNoDelay(true);
  socket.on('close', () => entry.ends());
  socket.on('error', () => socket.destroy());
  let unread = head;
  const read = (more) => {
    unread = Buffer.concat([unread, more]);
    for (let frame; (frame = take(unread)); ) {
      unread = frame.rest;
      entry.body += frame.payload.length;
      if (frame.opcode === 8) {
        entry.ends();
        return socket.end(encode(0x88, frame.payload));
      }
      if (frame.opcode === 9) socket.write(encode(0x8a, frame.payload));
      else if (frame.opcode !== 10) socket.write(encode(frame.first, frame.payload));
    }
  };
  socket.on('data', read);
  socket.on('end', () => { entry.ends(); socket.end(); });
  read(Buffer.alloc(0));
});

function take(bytes) {
  if (bytes.length < 2) return null;
  let at = 2;
  let length = bytes[1] & 0x7f;
  if (length === 126) {
    if (bytes.length < 4) return null;
    [length, at] = [bytes.readUInt16BE(2), 4];
  } else if (length === 127) {
    if (bytes.length < 10) return null;
    [length, at] = [Number(bytes.readBigUInt64BE(2)), 10];
  }
  if (bytes.length < at + 4 + length) return null;
  const mask = bytes.subarray(at, at + 4);
  const payload = Buffer.from(bytes.subarray(at + 4, at + 4 + length));
  for (let i = 0; i < length; i++) payload[i] ^= mask[i & 3];
  return { first: bytes[0], opcode: bytes[0] & 15, payload, rest: bytes.subarray(at + 4 + length) };
}

function encode(first, payload) {
  const length = payload.length;
  let head;
  if (length < 126) {
    head = Buffer.from([first, length]);
  } else if (length < 65536) {
    head = Buffer.from([first, 126, length >> 8, length & 255]);
  } else {
    head = Buffer.alloc(10);
    head.writeUInt8(first, 0);
    head.writeUInt8(127, 1);
    head.writeBigUInt64BE(BigInt(length), 2);
  }
  return Buffer.concat([head, payload]);
}

server.listen(Number(process.argv[2]), '127.0.0.1');
