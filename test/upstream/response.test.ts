// The reader of responses: the same however the bytes are cut, strict where others guess, and never laxer than llhttp, which Node's client uses.
import { type IncomingMessage, request } from 'node:http';
import { Duplex } from 'node:stream';
import t from 'tap';
import { createResponseReader } from '../../src/upstream/response.ts';
import { answers, mutate } from '../support/mutations.ts';
import { createRandom } from '../support/random.ts';

interface Read {
  status?: number;
  headers?: string[];
  body: string;
  isEnded: boolean;
  fault?: string | undefined;
  isReusable: boolean;
  /** How many bytes had been read when it ended. */
  endsAt?: number;
}

/** Reads bytes (latin1) in pieces of so many, by one buffer, as a connection does; with `isClosed` it ends behind them. */
function readAll(bytes: string, { method = 'GET', pieceBytes = Infinity, isClosed = true } = {}): Read {
  const read: Read = { body: '', isEnded: false, isReusable: false };
  const reader = createResponseReader(method, {
    onHead(status, headers) {
      if (read.status !== undefined) throw new Error('a second head');
      Object.assign(read, { status, headers });
    },
    onChunk(piece) {
      if (read.status === undefined || read.isEnded || piece.length === 0) throw new Error('a body where none is');
      read.body += piece.toString('latin1');
    },
  });
  const all = Buffer.from(bytes, 'latin1');
  // What earlier pieces have left behind could be read as if it were the next.
  const buffer = Buffer.alloc(all.length, '0');
  for (let at = 0; at < all.length && read.fault === undefined; at += Math.min(pieceBytes, all.length)) {
    const length = all.copy(buffer, 0, at, at + Math.min(pieceBytes, all.length));
    read.fault = reader.read(buffer, length);
    if (reader.isComplete) read.endsAt ??= at + pieceBytes;
  }
  if (read.fault === undefined && isClosed) read.fault = reader.end();
  return { ...read, isEnded: reader.isComplete, isReusable: reader.isReusable };
}

const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n';
const counted = (length: string) => `HTTP/1.1 200 OK\r\nContent-Length: ${length}\r\n\r\nhello`;

t.test('well-formed responses, cut at every offset', async (t) => {
  const table: [bytes: string, expected: Partial<Read>, method?: string][] = [
    [counted('5'), { status: 200, body: 'hello', isEnded: true, isReusable: true, headers: ['Content-Length', '5'] }],
    [`${chunked}5\r\nhello\r\n0\r\n\r\n`, { body: 'hello', isEnded: true, isReusable: true }],
    [
      `${chunked}005;a="b\xe9";c\r\nhello\r\nB\r\n world\r\n\r\n!\r\n0;x\r\nX-T: 1\r\nY:\r\n\r\n`,
      { body: 'hello world\r\n\r\n!', isEnded: true },
    ],
    ['HTTP/1.1 200\r\n\r\nuntil the end', { body: 'until the end', isEnded: true, isReusable: false }],
    ['HTTP/1.0 200 OK\r\n\r\nold', { body: 'old', isEnded: true, isReusable: false }],
    ['HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 3\r\n\r\nold', { body: 'old', isReusable: true }],
    ['HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n', { body: '', isEnded: true, isReusable: false }],
    [
      'HTTP/1.1 103 Early\r\nLink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nA: \t b\xe9 c \t\r\n\r\n',
      { status: 204, headers: ['A', 'b\xe9 c'], isEnded: true },
    ],
    ['HTTP/1.1 304 Not\r\nContent-Length: 9\r\n\r\n', { isEnded: true, isReusable: true }],
    [`HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n`, { isEnded: true, isReusable: false }, 'HEAD'],
    [`${chunked}`, { isEnded: true, isReusable: false }, 'HEAD'],
    [`HTTP/1.1 200 OK\r\n${'A: b\r\n'.repeat(999)}Content-Length: 0\r\n\r\n`, { isEnded: true }],
    [`HTTP/1.1 200 OK\r\nA: ${'b'.repeat(16_300)}\r\nContent-Length: 0\r\n\r\n`, { isEnded: true }],
  ];
  for (const [bytes, expected, method = 'GET'] of table) {
    for (const pieceBytes of [...Array.from({ length: Math.min(bytes.length, 120) }, (_, at) => at + 1), Infinity]) {
      const read = readAll(bytes, { method, pieceBytes });
      t.match(read, { fault: undefined, ...expected }, `${JSON.stringify(bytes.slice(0, 60))} in ${pieceBytes}`);
    }
  }
  t.equal(createKeepAlive('timeout=5, max=100'), 5000);
  t.equal(createKeepAlive('max=1,timeout=12'), 12_000);
  t.equal(createKeepAlive('x'), undefined);
});

function createKeepAlive(value: string): number | undefined {
  const reader = createResponseReader('GET', { onHead() {}, onChunk() {} });
  reader.read(Buffer.from(`HTTP/1.1 200 OK\r\nKeep-Alive: ${value}\r\nContent-Length: 0\r\n\r\n`));
  return reader.keepAliveMs;
}

t.test(
  'B9 B16 B19 B20 B25 C1 C2 C3 C5 what two servers could read in two ways is refused, and what is cut short never looks whole',
  async (t) => {
    const ok = 'HTTP/1.1 200 OK\r\n';
    const table: [bytes: string, fault: string][] = [
      ['HTTP/2 200 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['HTTP/1.2 200 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['HTTP/1.1  200 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['HTTP/1.1 20 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['HTTP/1.1 2000 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['http/1.1 200 OK\r\n\r\n', 'MALFORMED_HEAD'],
      [' HTTP/1.1 200 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['\r\nHTTP/1.1 200 OK\r\n\r\n', 'MALFORMED_HEAD'],
      ['HTTP/1.1 200 O\0K\r\n\r\n', 'MALFORMED_HEAD'],
      ['HTTP/1.1 200 OK\n\r\n\r\n', 'MALFORMED_HEAD'],
      [`${ok}A : b\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}A: b\r\n c\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok} A: b\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}A: b\rc\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}A: b\nC: d\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}A: \0\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}A: \x7f\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}: b\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}no colon\r\n\r\n`, 'MALFORMED_HEAD'],
      [`${ok}${'A: b\r\n'.repeat(1500)}\r\n`, 'MALFORMED_HEAD'],
      [`${ok}A: ${'b'.repeat(20_480)}\r\n\r\n`, 'HEAD_TOO_LARGE'],
      ['x'.repeat(100_000), 'HEAD_TOO_LARGE'],
      ['HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n', 'UNWANTED_UPGRADE'],
      [counted('5\r\nContent-Length: 5'), 'AMBIGUOUS_LENGTH'],
      ...['', '+5', '-1', '5, 5', '0x5', '5 5', '99999999999999999999', '5e0'].map((length): [string, string] => [
        counted(length),
        'AMBIGUOUS_LENGTH',
      ]),
      [`${ok}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`, 'AMBIGUOUS_LENGTH'],
      [`${ok}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`, 'AMBIGUOUS_LENGTH'],
      ...['gzip, chunked', 'chunked, identity', 'xchunked', 'identity', 'chunked;x', ''].map((coding): [string, string] => [
        `${ok}Transfer-Encoding: ${coding}\r\n\r\n0\r\n\r\n`,
        'UNKNOWN_CODING',
      ]),
      ['HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 'UNKNOWN_CODING'],
      ...[
        '5\nhello\r\n',
        '0x5\r\nhello\r\n',
        '+5\r\nhello\r\n',
        ' 5\r\nhello\r\n',
        '5 \r\nhello\r\n',
        '\r\nhello\r\n',
        'g\r\n',
        '5;\0\r\nhello',
        '5\rXhello',
        '5\r\nhelloX\r\n',
        '5\r\nhello\n0\r\n',
        '10000000000000\r\n',
        `5;${'x'.repeat(5000)}\r\n`,
      ].map((body): [string, string] => [chunked + body, 'MALFORMED_CHUNK']),
      [`${chunked}0\r\nbad trailer\r\n\r\n`, 'MALFORMED_TRAILER'],
      [`${chunked}0\r\nA: ${'b'.repeat(20_480)}\r\n\r\n`, 'MALFORMED_TRAILER'],
      [`${chunked}0\r\n`, 'CUT_SHORT'],
      [`${chunked}0\r\n\r`, 'CUT_SHORT'],
      [`${chunked}5\r\nhel`, 'CUT_SHORT'],
      [`${chunked}5\r\nhello\r\n`, 'CUT_SHORT'],
      [counted('6'), 'CUT_SHORT'],
      ['HTTP/1.1 200 OK\r\n', 'CUT_SHORT'],
      ['', 'CUT_SHORT'],
      ['HTTP/1.1 100 Continue\r\n\r\n', 'CUT_SHORT'],
    ];
    for (const [bytes, fault] of table) {
      for (const pieceBytes of [1, 7, Infinity]) {
        const read = readAll(bytes, { pieceBytes });
        t.match(read, { fault, isEnded: false, isReusable: false }, `${JSON.stringify(bytes.slice(0, 80))} in ${pieceBytes}`);
      }
    }
    for (const excess of ['x', '\r\n', 'HTTP/1.1 200 OK\r\n\r\n']) {
      const read = readAll(counted('5') + excess, { isClosed: false });
      t.match(read, { body: 'hello', isEnded: true, isReusable: false }, 'what comes behind it reaches nobody, and ends the connection');
    }
  },
);

/** What Node's own client, whose parser is llhttp, makes of the same bytes. */
function readByNode(bytes: string): Promise<Read> {
  return new Promise((resolve) => {
    const read: Read = { body: '', isEnded: false, isReusable: false };
    const connection = new Duplex({
      read() {},
      write(_, __, done) {
        done();
        setImmediate(() => {
          connection.push(Buffer.from(bytes, 'latin1'));
          connection.push(null);
        });
      },
    });
    const settle = (fault?: string) => resolve({ ...read, ...(fault !== undefined && { fault }) });
    const outgoing = request({ method: 'GET', path: '/', createConnection: () => connection as never });
    outgoing.on('response', (response: IncomingMessage) => {
      read.status = response.statusCode ?? 0;
      read.headers = response.rawHeaders;
      response.setEncoding('latin1').on('data', (piece: string) => {
        read.body += piece;
      });
      response.on('end', () => {
        read.isEnded = true;
        settle();
      });
      response.on('error', () => settle('broken'));
    });
    outgoing.on('upgrade', () => settle('upgrade')).on('error', () => settle('error'));
    outgoing.end();
  });
}

t.test(
  'C22 whatever the bytes are: it does not throw, pieces change nothing, and what it takes Node’s parser takes in the same way',
  async (t) => {
    const random = createRandom(20_261_124);
    let accepted = 0;
    for (let n = 0; n < 3000; n++) {
      const bytes = mutate(answers, random, `case ${n}`).toString('latin1');
      const whole = readAll(bytes);
      const pieces = readAll(bytes, { pieceBytes: 1 + random(5) });
      const told = ({ status, headers, body, isEnded, fault }: Read) => JSON.stringify([status, headers, body, isEnded, fault]);
      if (told(whole) !== told(pieces)) t.fail(`pieces differ: ${JSON.stringify(bytes)}`);
      if (whole.fault !== undefined) continue;
      // What comes behind a response is nobody's here, and an error there.
      const byNode = await readByNode(bytes.slice(0, readAll(bytes, { pieceBytes: 1 }).endsAt));
      accepted++;
      if (
        byNode.fault !== undefined ||
        byNode.status !== whole.status ||
        byNode.body !== whole.body ||
        byNode.headers?.join('\n') !== whole.headers?.join('\n')
      ) {
        t.fail(`${JSON.stringify(bytes)}: ${JSON.stringify(whole)} here, ${JSON.stringify(byNode)} there`);
      }
    }
    t.ok(accepted > 500, `${accepted} of them were taken`);
  },
);

t.test('what an earlier read has left behind in the buffer is not read again', async (t) => {
  const body: string[] = [];
  const reader = createResponseReader('GET', { onHead() {}, onChunk: (piece) => body.push(piece.toString('latin1')) });
  const buffer = Buffer.alloc(256);
  for (const piece of [chunked, '5\r\nhello\r\n', '5\r\nwo', 'rld\r\n', '0\r\n\r\n']) {
    t.equal(reader.read(buffer, buffer.write(piece, 'latin1')), undefined, JSON.stringify(piece));
  }
  t.equal(body.join(''), 'helloworld');
  t.ok(reader.isComplete);
});
