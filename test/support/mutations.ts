// Seeded damage to valid messages, for the fuzzer: what is sent is near enough to right to get deep into whoever reads it.

/** Gives integers from 0 up to, not including, `n`; see createRandom. */
export type Random = (n: number) => number;

/** Stands in every sample in several places, so that a case is known by what is left of it. */
export const CASE = 'case-000000';
export const CLIENT_KEY = 'sk-fuzz-client';

const own = `Host: 127.0.0.1\r\nAuthorization: Bearer ${CLIENT_KEY}\r\nX-Case: ${CASE}\r\n`;
const chat = `{"model":"m","stream":true,"user":"${CASE}","messages":[{"role":"user","content":"Hi"}]}`;
const json = 'Content-Type: application/json\r\n';

/** Valid requests. */
export const requests: readonly string[] = [
  `GET /v1/models/${CASE} HTTP/1.1\r\n${own}\r\n`,
  `GET /v1/files/${CASE}?limit=2&after=x%20y HTTP/1.1\r\n${own}Accept: */*\r\nConnection: keep-alive\r\n\r\n`,
  `POST /v1/chat/completions?${CASE} HTTP/1.1\r\n${own}${json}Content-Length: ${chat.length}\r\n\r\n${chat}`,
  `POST /v1/responses?${CASE} HTTP/1.1\r\n${own}${json}Transfer-Encoding: chunked\r\n\r\n10\r\n${chat.slice(0, 16)}\r\n${(chat.length - 16).toString(16)};x=y\r\n${chat.slice(16)}\r\n0\r\nX-Trailer: 1\r\n\r\n`,
  `PUT /v1/files/${CASE} HTTP/1.1\r\n${own}Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody`,
  `DELETE /v1/files/${CASE} HTTP/1.1\r\n${own}Connection: close, X-Private\r\nX-Private: 1\r\n\r\n`,
  `OPTIONS /v1/files/${CASE} HTTP/1.1\r\n${own}Origin: http://127.0.0.1\r\nAccess-Control-Request-Method: POST\r\n\r\n`,
  `GET /openai/deployments/${CASE}/x?api-version=1 HTTP/1.0\r\n${own}\r\n`,
  `GET /v1/realtime/${CASE} HTTP/1.1\r\n${own}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`,
  `HEAD /v1/models/${CASE} HTTP/1.1\r\n${own}Cookie: a=b\r\nTE: trailers\r\nX-Request-Id: mine\r\n\r\n`,
];

const chunk = (text: string) => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;
const event = (content: string) => `data: {"choices":[{"index":0,"delta":{"content":"${content}"}}]}\n\n`;
const finish = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n';
const sse = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: theirs\r\n';
const done = 'data: [DONE]\n\n';
const error = '{"error":{"message":"no","type":"x","param":null,"code":"y"}}';

/** Valid answers to a chat call. */
export const answers: readonly string[] = [
  `${sse}Transfer-Encoding: chunked\r\n\r\n${[event('Hello'), event(' world'), finish, done].map(chunk).join('')}0\r\n\r\n`,
  `${sse}Transfer-Encoding: chunked\r\n\r\n${chunk(`: hi\r\n\r\nid: 1\r\nevent: x\r\n${event('é€😀')}`)}${chunk(event('b') + finish)}${chunk(done)}0\r\nX-Trailer: 1\r\n\r\n`,
  `${sse}Connection: close\r\n\r\n${event('until the end')}${finish}${done}`,
  `${sse}Content-Length: ${(event('counted') + finish + done).length}\r\n\r\n${event('counted')}${finish}${done}`,
  `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 58\r\n\r\n{"choices":[],"usage":{"prompt_tokens":1,"total_tokens":1}}`,
  `HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: ${error.length}\r\n\r\n${error}`,
  `HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunk('plain')}0\r\n\r\n`,
  'HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=5\r\n\r\n',
  `HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold`,
];

const bytesOfInterest = [
  '\0',
  '\n',
  '\r',
  '\t',
  ' ',
  ':',
  ',',
  ';',
  '/',
  '\\',
  '%',
  '?',
  '#',
  '"',
  '\x7f',
  '\x80',
  '\xff',
  '\x0b',
  '0',
  '-',
  '+',
  '\u001b',
];
const piecesOfInterest = [
  '\r\n',
  '\r\n\r\n',
  '\n\n',
  '\r\n ',
  '0\r\n\r\n',
  'Content-Length: 0\r\n',
  'Content-Length: 5\r\n',
  'Content-Length: 99999999999999999999\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Transfer-Encoding: gzip, chunked\r\n',
  'Transfer-Encoding:\x0bchunked\r\n',
  'Host: evil.example\r\n',
  'Expect: 100-continue\r\n',
  'Upgrade: h2c\r\nConnection: upgrade\r\n',
  'Connection: close\r\n',
  'Content-Encoding: gzip\r\n',
  'HTTP/1.1 200 OK\r\n\r\n',
  'HTTP/1.1 101 Switching Protocols\r\n\r\n',
  'GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n',
  '/../',
  '%2e%2e/',
  '%00',
  'http://evil.example',
  'ffffffffffffffff',
  'data: [DONE]\n\n',
  'data: {"error":{"message":"x"}}\n\n',
  'data: ',
  '\xef\xbb\xbf',
  'id: 7\n',
  'event: error\n',
  '{"model":',
];

type Mutation = (text: string, random: Random, others: readonly string[]) => string;

const replaceAt = (text: string, at: number, length: number, by: string) => text.slice(0, at) + by + text.slice(at + length);
const pick = <T>(list: readonly T[], random: Random): T => list[random(list.length)]!;

const mutations: readonly Mutation[] = [
  function flipBit(text, random) {
    const at = random(text.length);
    return replaceAt(text, at, 1, String.fromCharCode(text.charCodeAt(at) ^ (1 << random(8))));
  },
  (text, random) => replaceAt(text, random(text.length), 1, pick(bytesOfInterest, random)),
  (text, random) => replaceAt(text, random(text.length), 0, pick(bytesOfInterest, random)),
  (text, random) => replaceAt(text, random(text.length), 0, pick(piecesOfInterest, random)),
  function insertLine(text, random) {
    const at = text.indexOf('\r\n') + 2;
    return replaceAt(text, at, 0, pick(piecesOfInterest, random));
  },
  (text, random) => replaceAt(text, random(text.length), 1 + random(8), ''),
  function repeat(text, random) {
    const at = random(text.length);
    return replaceAt(text, at, 0, text.slice(at, at + 1 + random(64)));
  },
  function moveLine(text, random) {
    const lines = text.split('\r\n');
    const [line = ''] = lines.splice(random(lines.length), 1);
    lines.splice(random(lines.length + 1), 0, line);
    return lines.join('\r\n');
  },
  function changeNumber(text, random) {
    const numbers = [...text.matchAll(/\d+/g)];
    const found = numbers[random(numbers.length)];
    return found ? replaceAt(text, found.index, found[0].length, String(Number(found[0]) + random(7) - 3)) : text;
  },
  (text, random) => text.slice(0, 1 + random(text.length)),
  (text, random, others) => text.slice(0, random(text.length)) + pick(others, random),
  function loseCarriageReturn(text, random) {
    const places = [...text.matchAll(/\r\n/g)];
    const found = places[random(places.length)];
    return found ? replaceAt(text, found.index, 2, random(2) ? '\n' : '\r') : text;
  },
  function changeCase(text, random) {
    const at = random(text.length);
    const part = text.slice(at, at + 20);
    return replaceAt(text, at, part.length, random(2) ? part.toUpperCase() : part.toLowerCase());
  },
];

/** One of the samples, with one to three mutations, as bytes: a character each (latin1). Its case is named `name`, of the length of CASE. */
export function mutate(samples: readonly string[], random: Random, name: string): Buffer {
  let text = Buffer.from(pick(samples, random)).toString('latin1');
  for (let left = 1 + random(3); left > 0; left--) text = pick(mutations, random)(text, random, samples) || text;
  return Buffer.from(text.replaceAll(CASE, name), 'latin1');
}
