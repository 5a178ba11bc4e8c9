// What providers write into their streams, event by event; and the errors that we write, read by an SDK.
import OpenAI from 'openai';
import t from 'tap';
import { createEventScanner } from '../../src/stream/sse.ts';
import { anthropic } from '../../src/upstream/dialects/anthropic.ts';
import { speech, transcription } from '../../src/upstream/dialects/audio.ts';
import { chat } from '../../src/upstream/dialects/chat.ts';
import { createChoiceBook } from '../../src/upstream/dialects/choice-book.ts';
import { completions } from '../../src/upstream/dialects/completions.ts';
import type { Dialect, EventReader } from '../../src/upstream/dialects/dialect.ts';
import { images } from '../../src/upstream/dialects/images.ts';
import { plain } from '../../src/upstream/dialects/plain.ts';
import { responses } from '../../src/upstream/dialects/responses.ts';
import { routeEndpoint } from '../../src/upstream/endpoints.ts';

/** Events as they come: JSON for objects, named by their type where `isNamed`. */
function feed(dialect: Dialect, events: (object | string)[], isNamed = false): EventReader {
  const reader = dialect.createReader();
  for (const event of events) {
    const text = typeof event === 'string' ? event : JSON.stringify(event);
    reader.read(isNamed ? ((event as { type?: string }).type ?? '') : '', Buffer.from(text).toString('latin1'));
  }
  return reader;
}

/** The texts of all lanes since the last look. */
function textsOf(reader: EventReader): string[] {
  return reader.lanes.map((lane) => lane.takeText());
}

function delta(content: object, more: object = {}, index = 0): object {
  return { id: 'c', object: 'chat.completion.chunk', model: 'm', choices: [{ index, delta: content, finish_reason: null }], ...more };
}

function finish(reason: string, more: object = {}, index = 0): object {
  return { id: 'c', model: 'm', choices: [{ index, delta: {}, finish_reason: reason }], ...more };
}

const tokens = (prompt: number, completion: number) => ({
  usage: { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion },
});

t.test('chat: what counts as content, and what as a sign of life', async (t) => {
  const cases: [what: string, event: object | string, content: number, meaning: number, text: string][] = [
    ['a role', delta({ role: 'assistant', content: '' }), 0, 1, ''],
    ['an empty delta', delta({ content: '' }), 0, 1, ''],
    ['text', delta({ content: 'a "quoted" \n 你好 \\' }), 1, 1, 'a "quoted" \n 你好 \\'],
    ['reasoning', delta({ reasoning_content: 'r' }), 1, 1, 'r'],
    ['reasoning under both names, once', delta({ reasoning: 'r', reasoning_content: 'r' }), 1, 1, 'r'],
    ['a refusal', delta({ refusal: 'no' }), 1, 1, 'no'],
    ['arguments', delta({ tool_calls: [{ index: 0, function: { arguments: '{"a":' } }] }), 1, 1, '{"a":'],
    ['a custom tool', delta({ tool_calls: [{ index: 0, custom: { name: 'n', input: 'x' } }] }), 1, 1, 'nx'],
    ['a name', delta({ tool_calls: [{ index: 0, id: 'i', type: 'function', function: { name: 'get', arguments: '' } }] }), 1, 1, 'get'],
    ['a function of old', delta({ function_call: { name: 'get', arguments: '{}' } }), 1, 1, 'get{}'],
    ['audio', delta({ audio: { data: 'QUJD', transcript: 't' } }), 1, 1, 't'],
    ['an image', delta({ images: [{ image_url: { url: 'data:' } }] }), 1, 1, ''],
    [
      'parts',
      delta({
        content: [
          { type: 'thinking', thinking: [{ text: 'th' }] },
          { type: 'text', text: 'x' },
        ],
      }),
      1,
      1,
      'thx',
    ],
    ['logprobs are no text', { choices: [{ index: 0, delta: { content: 'a' }, logprobs: { content: [{ token: 'b' }] } }] }, 1, 1, 'a'],
    ['Azure, first', { choices: [], model: '', prompt_filter_results: [{ prompt_index: 0 }] }, 0, 1, ''],
    ['no choices', { choices: [] }, 0, 0, ''],
    ['broken JSON', '{"choices":[', 0, 1, ''],
    ['no object', 'null', 0, 1, ''],
  ];
  for (const [what, event, content, meaning, text] of cases) {
    const reader = feed(chat, [event]);
    t.same([reader.contentCount, reader.meaningCount, textsOf(reader).join('')], [content, meaning, text], what);
  }
  const idle = feed(chat, [delta({ role: 'assistant' }), delta({ role: 'assistant', content: '' }), delta({})]);
  t.equal(idle.meaningCount, 1, 'a role is news once, an empty delta never');
  const reading = (processed: number) => delta({ role: 'assistant', content: null }, { prompt_progress: { total: 90_000, processed } });
  t.match(feed(chat, [reading(2048), reading(4096), reading(6144)]), { meaningCount: 3, contentCount: 0 }, 'a prompt that is being read');
});

t.test('what is like an earlier event is read like it, and what is not is not', async (t) => {
  const text = (content: string, more: object = {}) => delta({ content }, { created: 1, obfuscation: 'x'.repeat(content.length), ...more });
  const reader = feed(chat, [
    text('one'),
    text(' two'),
    text(' "usage":{"prompt_tokens":9}'),
    text('\ud83d'),
    text('\ude00'),
    text(''),
    text('m'),
    text(' three', { usage: { prompt_tokens: 1, completion_tokens: 7 } }),
    text(' four', { created: 2 }),
    delta({ content: ' five' }, { error: { message: 'x' } }),
    delta({ reasoning_content: ' six' }),
    delta({ content: ' seven' }, {}, 1),
  ]);
  t.same(textsOf(reader), ['one two "usage":{"prompt_tokens":9}😀m three four five', ' six', ' seven']);
  t.same([reader.contentCount, reader.meaningCount, reader.hasError, reader.isOutputKnown], [11, 11, true, false]);
  t.match(reader.usage, { input: 1, output: 7 });
  const timed = feed(chat, [
    delta({ content: 'one' }, { t: 1.5, usage: { prompt_tokens: 0, completion_tokens: 0 } }),
    delta({ content: ' two' }, { t: -2e9, usage: { prompt_tokens: 0, completion_tokens: 0 } }),
    delta({ content: ' three' }, { t: 17, usage: { prompt_tokens: 3, completion_tokens: 4 } }),
  ]);
  t.same(textsOf(timed), ['one two three']);
  t.match(timed.usage, { input: 3, output: 4 }, 'a number further in is none that may differ');
  const block = (index: number, text: string) => ({ type: 'content_block_delta', index, delta: { type: 'text_delta', text } });
  t.same(textsOf(feed(anthropic, [block(0, 'a'), block(0, 'b'), block(1, 'c')])), ['ab', 'c'], 'an index says which text it is');
  const named = feed(chat, [text('one')]);
  named.read('error', JSON.stringify(text(' two')));
  t.equal(named.hasError, true, 'the name is part of it');
});

t.test('texts that come in turn are kept apart, and a name that is repeated counts once', async (t) => {
  const call = (index: number, more: object) => delta({ tool_calls: [{ index, ...more }] });
  const inTurn: object[] = [];
  for (const [a, b] of [
    ['Hel', 'Bon'],
    ['lo', 'jour'],
    [' you', ' toi'],
  ]) {
    inTurn.push(delta({ content: a }), delta({ content: b }, {}, 1), delta({ reasoning: a }), call(0, { function: { arguments: b } }));
    inTurn.push(call(1, { function: { arguments: a } }));
  }
  t.same(textsOf(feed(chat, inTurn)), ['Hello you', 'Bonjour toi', 'Hello you', 'Bonjour toi', 'Hello you']);
  const named = (id: string | undefined, name: string, args: string) => call(0, { id, function: { name, arguments: args } });
  const repeated = feed(chat, [named('1', 'get', '{'), named('1', 'get', '"a"'), named(undefined, 'get', ':1'), named('1', 'get', '}')]);
  t.same(textsOf(repeated), ['get', '{"a":1}'], 'with every delta');
  const calls = feed(chat, [named('1', 'get', '{}'), named('2', 'get', '{}'), named('3', 'put', '{}')]);
  t.same(textsOf(calls), ['getgetput', '{}{}{}'], 'three calls that all have the index 0');
  const item = { type: 'function_call', call_id: 'c', name: 'get', arguments: '' };
  const named2 = feed(responses, [
    { type: 'response.output_item.added', output_index: 0, item },
    { type: 'response.function_call_arguments.delta', output_index: 0, delta: '{}' },
    { type: 'response.output_text.delta', output_index: 1, content_index: 0, delta: 'a' },
    { type: 'response.refusal.delta', output_index: 1, content_index: 1, delta: 'b' },
    { type: 'response.output_item.done', output_index: 0, item: { ...item, arguments: '{}' } },
  ]);
  t.same(textsOf(named2), ['get', '{}', 'a', 'b']);
  const blocks = feed(anthropic, [
    { type: 'content_block_start', index: 1, content_block: { type: 'tool_use', id: 't', name: 'get', input: {} } },
    { type: 'content_block_delta', index: 1, delta: { type: 'input_json_delta', partial_json: '{}' } },
    { type: 'content_block_delta', index: 2, delta: { type: 'text_delta', text: 'a' } },
  ]);
  t.same(textsOf(blocks), ['get', '{}', 'a']);
  const many = feed(
    chat,
    Array.from({ length: 500 }, (_, i) => delta({ content: 'x' }, {}, i)),
  );
  t.same([many.lanes.length, textsOf(many).join('').length], [65, 500], 'whoever invents indexes does not fill the memory');
});

t.test('chat: an answer is complete once every choice seen has ended', async (t) => {
  const reader = feed(chat, [delta({ content: 'a' }), delta({ content: 'b' }, {}, 1), finish('stop')]);
  t.equal(reader.isComplete, false);
  reader.read('', JSON.stringify(finish('length', {}, 1)));
  t.same([reader.isComplete, reader.isTerminated], [true, false]);
  reader.read('', '[DONE]');
  t.equal(reader.isTerminated, true);
  t.equal(feed(chat, []).isComplete, false, 'nothing is not complete');
  t.equal(feed(chat, ['[DONE] ']).isTerminated, true, 'openai-python goes by the prefix');
});

t.test('chat: the last usage that says something wins', async (t) => {
  const cases: [what: string, events: (object | string)[], usage: object | undefined, isFinal: boolean, isOutputKnown: boolean][] = [
    [
      'with empty choices',
      [delta({ content: 'a' }), finish('stop'), { choices: [], ...tokens(5, 6) }],
      { input: 5, output: 6 },
      true,
      true,
    ],
    ['on the finish event', [delta({ content: 'a' }), finish('stop', tokens(5, 6))], { input: 5, output: 6 }, true, true],
    ['null everywhere', [delta({ content: 'a' }, { usage: null }), finish('stop', { usage: null }), '[DONE]'], undefined, false, false],
    ['zeros until the last', [delta({ content: 'a' }, tokens(0, 0)), finish('stop', tokens(3, 1))], { input: 3, output: 1 }, true, true],
    ['zeros only', [delta({ content: 'a' }, tokens(0, 0)), finish('stop', tokens(0, 0)), '[DONE]'], undefined, false, false],
    ['twice', [finish('stop', tokens(5, 6)), { choices: [], ...tokens(5, 7) }], { input: 5, output: 7 }, true, true],
    ['running', [delta({ content: 'a' }, tokens(5, 1)), delta({ content: 'b' }, tokens(5, 2))], { input: 5, output: 2 }, false, true],
    [
      'running, and the same twice',
      [delta({ content: 'a' }, tokens(5, 1)), delta({ content: 'b' }, tokens(5, 1))],
      { input: 5, output: 1 },
      false,
      true,
    ],
    ['early only', [delta({ content: 'a' }, tokens(5, 1)), delta({ content: 'b' })], { input: 5, output: 1 }, false, false],
    ['running, then done', [delta({ content: 'a' }, tokens(5, 1)), '[DONE]'], { input: 5, output: 1 }, true, true],
    ['after the end, with a choice', [finish('stop'), { choices: [{ delta: {} }], ...tokens(5, 6) }], { input: 5, output: 6 }, true, true],
    ['Groq of old', [finish('stop', { x_groq: tokens(5, 6) })], { input: 5, output: 6 }, true, true],
    ['cost', [finish('stop', { usage: { ...tokens(5, 6).usage, cost: 0.1, cost_details: {} } })], { input: 5, output: 6 }, true, true],
  ];
  for (const [what, events, usage, isFinal, isOutputKnown] of cases) {
    const reader = feed(chat, events);
    if (usage === undefined) t.equal(reader.usage, undefined, what);
    else t.match(reader.usage, usage, what);
    t.same([reader.isUsageFinal, reader.isOutputKnown], [isFinal, isOutputKnown], what);
  }
});

t.test('details are part of input and output, whatever the provider counts', async (t) => {
  const cases: [Dialect, usage: unknown, expected: object | undefined][] = [
    [
      chat,
      { prompt_tokens: 10, completion_tokens: 2, total_tokens: 42, completion_tokens_details: { reasoning_tokens: 30 } },
      { output: 32 },
    ],
    [
      chat,
      { prompt_tokens: 10, completion_tokens: 32, total_tokens: 42, completion_tokens_details: { reasoning_tokens: 30 } },
      { output: 32 },
    ],
    [
      chat,
      { prompt_tokens: 9, completion_tokens: 1, prompt_tokens_details: { audio_tokens: 4, cached_tokens: 3 } },
      { audioInput: 4, cachedInput: 3 },
    ],
    [chat, { prompt_tokens: 9, completion_tokens: 5, completion_tokens_details: { audio_tokens: 4 } }, { audioOutput: 4 }],
    [chat, { prompt_tokens: 9, completion_tokens: 5, prompt_cache_hit_tokens: 8 }, { cachedInput: 8 }],
    [
      responses,
      { input_tokens: 9, output_tokens: 1, input_tokens_details: { cached_tokens: 2, cache_write_tokens: 3 } },
      { cachedInput: 2, cacheWrite: 3 },
    ],
    [
      anthropic,
      { input_tokens: 1, cache_read_input_tokens: 20, cache_creation_input_tokens: 300, output_tokens: 4 },
      { input: 321, output: 4 },
    ],
    [anthropic, { input_tokens: 1, output_tokens: 4, cache_read_input_tokens: null }, { input: 1, cachedInput: 0 }],
    [
      anthropic,
      {
        input_tokens: 1,
        output_tokens: 4,
        iterations: [
          { type: 'compaction', input_tokens: 10, cache_read_input_tokens: 20, output_tokens: 5 },
          { type: 'message', input_tokens: 1, output_tokens: 4 },
        ],
      },
      { input: 31, output: 9, cachedInput: 20 },
    ],
    [plain, { prompt_tokens: 8, total_tokens: 8 }, { input: 8, output: 0 }],
    [
      transcription,
      { type: 'tokens', input_tokens: 14, input_token_details: { text_tokens: 0, audio_tokens: 14 }, output_tokens: 4 },
      { audioInput: 14 },
    ],
    [transcription, { type: 'duration', seconds: 3 }, undefined],
    [chat, null, undefined],
    [chat, { prompt_tokens: -1, completion_tokens: '5' }, undefined],
    [chat, [], undefined],
  ];
  for (const [dialect, usage, expected] of cases) {
    if (expected === undefined) t.equal(dialect.usageOf(usage), undefined, JSON.stringify(usage));
    else t.match(dialect.usageOf(usage), expected, JSON.stringify(usage));
  }
});

t.test('an upstream that says it failed is heard', async (t) => {
  const cases: [Dialect, name: string, data: object | string][] = [
    [chat, '', { error: { message: 'x', code: 500 } }],
    [chat, '', { choices: [{ index: 0, delta: { content: '' }, finish_reason: 'error' }], error: { code: 502 } }],
    [chat, '', finish('error')],
    [chat, 'error', 'not JSON'],
    [completions, '', { error: { message: 'x' } }],
    [responses, 'response.failed', { type: 'response.failed', response: { error: {} } }],
    [responses, 'error', { type: 'error', code: 'x', message: 'y', sequence_number: 3 }],
    [responses, '', { type: 'error', error: { message: 'y' } }],
    [anthropic, 'error', { type: 'error', error: { type: 'overloaded_error' } }],
    [speech, 'error', { type: 'error', error: {} }],
    [plain, '', { error: 'x' }],
  ];
  for (const [dialect, name, data] of cases) {
    const reader = dialect.createReader();
    reader.read(name, typeof data === 'string' ? data : JSON.stringify(data));
    t.same([reader.hasError, reader.contentCount], [true, 0], `${dialect.name}: ${JSON.stringify(data)}`);
  }
  t.equal(feed(responses, [{ type: 'response.completed', response: { error: null } }]).hasError, false);
});

t.test('responses: all three ends report usage, and the last number is remembered', async (t) => {
  const usage = { input_tokens: 3, output_tokens: 4 };
  for (const type of ['response.completed', 'response.incomplete', 'response.failed']) {
    const reader = feed(responses, [{ type, sequence_number: 9, response: { model: 'gpt-5', usage } }], true);
    t.match(reader, { usage: { input: 3, output: 4 }, isTerminated: true, isUsageFinal: true, model: 'gpt-5', sequenceNumber: 9 }, type);
  }
  const event = (n: number, text: string) => ({
    type: 'response.output_text.delta',
    sequence_number: n,
    output_index: 0,
    delta: text,
    logprobs: [],
  });
  const reader = feed(responses, [event(7, 'a'), event(8, 'b'), event(9, 'c')], true);
  t.same([textsOf(reader), reader.sequenceNumber, reader.isComplete], [['abc'], 9, false]);
  const call = { type: 'function_call', arguments: '{"a":1}' };
  t.same(
    textsOf(feed(responses, [{ type: 'response.output_item.done', output_index: 0, item: call }])),
    ['{"a":1}'],
    'arguments in one piece',
  );
  const image = feed(responses, [{ type: 'response.image_generation_call.partial_image', output_index: 0, partial_image_b64: 'QUJD' }]);
  const audio = feed(responses, [{ type: 'response.audio.delta', delta: 'QUJD' }]);
  for (const reader of [image, audio]) t.match(reader, { contentCount: 1, textLength: 0 }, 'output that is no text');
  const unknown = feed(responses, [{ type: 'response.something_new.progress' }, { type: 'keepalive' }]);
  t.match(unknown, { contentCount: 0, meaningCount: 1 }, 'an event of a new family is a sign of life');
  const tooLong = responses.createReader();
  tooLong.read('response.completed', '');
  t.same([tooLong.isTerminated, tooLong.usage], [true, undefined], 'an end too long to read is an end');
});

t.test('anthropic: what message_start says of output is a placeholder, and pings are nothing', async (t) => {
  const start = {
    type: 'message_start',
    message: { model: 'claude', usage: { input_tokens: 5, cache_read_input_tokens: 7, output_tokens: 1 } },
  };
  const text = { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: 'Hi' } };
  t.match(feed(anthropic, [start]), { isUsageFinal: false, isOutputKnown: false }, 'nothing was said yet');
  const reader = feed(anthropic, [start, { type: 'ping' }, text, { type: 'ping' }], true);
  t.match(reader, { contentCount: 1, meaningCount: 2, isUsageFinal: false, isOutputKnown: false, isComplete: false, model: 'claude' });
  t.match(reader.usage, { input: 12, cachedInput: 7 });
  reader.read(
    'message_delta',
    JSON.stringify({ type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { input_tokens: null, output_tokens: 9 } }),
  );
  t.match(reader, { isUsageFinal: true, usage: { input: 12, output: 9 } });
  reader.read('message_stop', '{"type":"message_stop"}');
  t.equal(reader.isTerminated, true);

  const of = (delta: object) => feed(anthropic, [{ type: 'content_block_delta', index: 0, delta }]);
  t.match(of({ type: 'compaction_delta', content: 'So far', encrypted_content: null }), { contentCount: 1, textLength: 6 });
  t.match(of({ type: 'something_new_delta', something: { new: 1 } }), { contentCount: 0, meaningCount: 1 }, 'is a sign of life');
  t.match(of({ type: 'input_json_delta', partial_json: '' }), { contentCount: 0, meaningCount: 0 }, 'is none');
});

t.test('speech, transcriptions and images end with their own events', async (t) => {
  const usage = { input_tokens: 2, output_tokens: 3, total_tokens: 5 };
  const spoken = feed(
    speech,
    [
      { type: 'speech.audio.delta', audio: 'QUJD' },
      { type: 'speech.audio.done', usage },
    ],
    true,
  );
  t.match(spoken, { contentCount: 1, textLength: 0, isTerminated: true, usage: { input: 2, output: 3 } });
  const heard = feed(
    transcription,
    [
      { type: 'transcript.text.delta', delta: 'Hi' },
      { type: 'transcript.text.done', text: 'Hi', usage },
    ],
    true,
  );
  t.match(heard, { contentCount: 1, textLength: 2, isTerminated: true, usage: { input: 2, output: 3 } });
  const drawn = feed(images, [{ type: 'image_generation.partial_image', b64_json: 'QUJD' }], true);
  t.match(drawn, { contentCount: 1, isTerminated: false });
  drawn.read('image_edit.completed', JSON.stringify({ type: 'image_edit.completed', b64_json: 'QUJD', usage }));
  t.match(drawn, { contentCount: 2, isTerminated: true, usage: { input: 2, output: 3 } });
  t.match(feed(plain, [{ type: 'thread.run.created' }, { type: 'ping' }]), {
    isComplete: true,
    isTerminated: false,
    contentCount: 1,
    meaningCount: 1,
  });
});

t.test('completions: text stands in the choice', async (t) => {
  const event = (text: string, finish_reason: string | null) => ({
    choices: [{ index: 0, text, logprobs: null, finish_reason }],
    model: 'i',
  });
  const reader = feed(completions, [event('a', null), event(' b', null), event('', 'length')]);
  t.same([textsOf(reader), reader.contentCount, reader.isComplete, reader.model], [['a b'], 2, true, 'i']);
});

const failure = { code: 'upstream_truncated', type: 'upstream_error', message: 'The answer broke off — “here”.' };

/** The SDK, reading the stream that it would have received. */
function client(body: string): OpenAI {
  const answer = async () => new Response(body, { headers: { 'content-type': 'text/event-stream' } });
  return new OpenAI({ apiKey: 'k', baseURL: 'http://127.0.0.1:1/v1', maxRetries: 0, fetch: answer });
}

async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

t.test('the openai SDK raises the errors that we write', async (t) => {
  const first = `data: ${JSON.stringify(delta({ content: 'a' }))}\n\n`;
  const raised = { name: 'Error', code: failure.code, type: failure.type };
  const chatBody = first + chat.errorEvent(failure, chat.createReader());
  const ask = { model: 'm', stream: true } as const;
  await t.rejects(
    client(chatBody)
      .chat.completions.create({ ...ask, messages: [] })
      .then(drain),
    raised,
    'chat',
  );
  const textBody = completions.errorEvent(failure, completions.createReader());
  await t.rejects(
    client(textBody)
      .completions.create({ ...ask, prompt: 'x' })
      .then(drain),
    raised,
    'completions',
  );
  const responsesBody = responses.errorEvent(failure, feed(responses, [{ type: 'x', sequence_number: 4 }]));
  await t.rejects(
    client(responsesBody)
      .responses.create({ ...ask, input: 'x' })
      .then(drain),
    raised,
    'responses',
  );
  const imagesBody = images.errorEvent(failure, images.createReader());
  await t.rejects(
    client(imagesBody)
      .images.generate({ ...ask, prompt: 'x' })
      .then(drain),
    raised,
    'images',
  );
});

t.test('an error event is one event in its dialect, ASCII only', async (t) => {
  const shapes: [Dialect, name: string, body: object][] = [
    [chat, '', { error: { code: failure.code, type: failure.type, param: null, message: failure.message } }],
    [completions, '', { error: { code: failure.code } }],
    [responses, 'error', { type: 'error', sequence_number: 5, code: failure.code, param: null, error: { code: failure.code } }],
    [anthropic, 'error', { type: 'error', error: { type: failure.type, message: failure.message } }],
    [speech, 'error', { type: 'error', error: { code: failure.code } }],
    [transcription, 'error', { type: 'error', error: { code: failure.code } }],
    [images, 'error', { type: 'error', error: { code: failure.code } }],
    [plain, '', { error: { code: failure.code } }],
  ];
  for (const [dialect, name, body] of shapes) {
    const text = dialect.errorEvent(failure, feed(dialect, [{ type: 'x', sequence_number: 4 }]));
    const events: [string, string][] = [];
    createEventScanner({ onEvent: (event, data) => events.push([event, data]) }).scan(text);
    t.equal(events.length, 1, dialect.name);
    t.equal(events[0]![0], name, dialect.name);
    t.match(JSON.parse(events[0]![1]), body, dialect.name);
    t.match(text, /^[\n\x20-\x7e]*\n\n$/, dialect.name);
    const reader = dialect.createReader();
    reader.read(...events[0]!);
    t.equal(reader.hasError, true, `${dialect.name}: another Sluicegate hears it`);
  }
});

t.test('paths are known by their templates, under /v1 and as Azure has them', async (t) => {
  const cases: [request: string, endpoint: string, dialect: string, operation?: string][] = [
    ['POST /v1/chat/completions', '/v1/chat/completions', 'chat', 'chat'],
    ['GET /v1/chat/completions', '/v1/chat/completions', 'chat'],
    ['GET /v1/chat/completions/abc', '/v1/chat/completions/{completion_id}', 'plain'],
    ['POST /openai/deployments/my%20gpt/chat/completions', '/v1/chat/completions', 'chat', 'chat'],
    ['POST /openai/v1/chat/completions', '/v1/chat/completions', 'chat', 'chat'],
    ['POST /openai/responses', '/v1/responses', 'responses', 'chat'],
    ['POST /v1/completions', '/v1/completions', 'completions', 'text_completion'],
    ['POST /v1/responses', '/v1/responses', 'responses', 'chat'],
    ['GET /v1/responses/resp_1', '/v1/responses/{response_id}', 'responses'],
    ['POST /v1/responses/resp_1/cancel', '/v1/responses/{response_id}/cancel', 'plain'],
    ['GET /v1/responses/resp_1/input_items', '/v1/responses/{response_id}/input_items', 'plain'],
    ['POST /v1/embeddings', '/v1/embeddings', 'plain', 'embeddings'],
    ['POST /v1/moderations', '/v1/moderations', 'plain'],
    ['GET /v1/models', '/v1/models', 'plain'],
    ['GET /v1/models/', '/v1/models', 'plain'],
    ['GET /v1/models/gpt-4o', '/v1/models/{model}', 'plain'],
    ['GET /v1/models/meta-llama/Llama-3', '/v1/models/{model}', 'plain'],
    ['GET /v1/files/f/content', '/v1/files/{file_id}/content', 'plain'],
    ['POST /v1/uploads/u/parts', '/v1/uploads/{upload_id}/parts', 'plain'],
    ['POST /v1/batches/b/cancel', '/v1/batches/{batch_id}/cancel', 'plain'],
    ['POST /v1/audio/speech', '/v1/audio/speech', 'speech', 'generate_content'],
    ['POST /v1/audio/transcriptions', '/v1/audio/transcriptions', 'transcription', 'generate_content'],
    ['POST /v1/audio/translations', '/v1/audio/translations', 'transcription', 'generate_content'],
    ['POST /v1/images/edits', '/v1/images/edits', 'images', 'generate_content'],
    ['POST /v1/images/variations', '/v1/images/variations', 'images', 'generate_content'],
    ['GET /v1/fine_tuning/jobs/j/events', '/v1/fine_tuning/jobs/{job_id}/events', 'plain'],
    ['POST /v1/vector_stores/v/search', '/v1/vector_stores/{vector_store_id}/search', 'plain', 'retrieval'],
    ['GET /v1/assistants/a', '/v1/assistants/{assistant_id}', 'plain'],
    ['POST /v1/threads/runs', '/v1/threads/runs', 'plain', 'invoke_agent'],
    ['POST /v1/threads/t/runs', '/v1/threads/{thread_id}/runs', 'plain', 'invoke_agent'],
    ['GET /v1/threads/t/runs/r/steps/s', '/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}', 'plain'],
    ['GET /v1/realtime', '/v1/realtime', 'plain'],
    ['GET /v1/containers/c/files/f/content', '/v1/containers/{container_id}/files/{file_id}/content', 'plain'],
    ['POST /v1/conversations/c/items', '/v1/conversations/{conversation_id}/items', 'plain'],
    ['GET /v1/evals/e/runs/r', '/v1/evals/{eval_id}/runs/{run_id}', 'plain'],
    ['POST /v1/videos', '/v1/videos', 'plain', 'generate_content'],
    ['GET /v1/videos/v/content', '/v1/videos/{video_id}/content', 'plain'],
    ['POST /v1/messages', '/v1/messages', 'anthropic', 'chat'],
    ['POST /v1/messages/count_tokens', '/v1/messages/count_tokens', 'anthropic'],
    ['GET /v1/messages/batches/b/results', '/v1/messages/batches/{batch_id}/results', 'plain'],
    ['GET /v1/unknown', 'other', 'plain'],
    ['GET /v1/files//content', 'other', 'plain'],
    ['GET /v1/__proto__/constructor', 'other', 'plain'],
    ['GET /v1/', 'other', 'plain'],
    ['GET /v1', 'other', 'plain'],
    ['GET /v2/models', 'other', 'plain'],
    ['GET /v1/chat', 'other', 'plain'],
  ];
  for (const [request, endpoint, dialect, operation] of cases) {
    const [method, path] = request.split(' ') as [string, string];
    const routed = routeEndpoint(method, path);
    t.same([routed.endpoint, routed.dialect.name, routed.operation], [endpoint, dialect, operation], request);
  }
});

t.test('choices are known by their indexes, whichever and in whatever order, up to a bound', async (t) => {
  const book = createChoiceBook();
  t.equal(book.areEnded, false, 'none is not all');
  t.same(
    [0, 2, '2', 0].map((index) => book.begin(index)),
    [true, true, true, false],
  );
  book.end(0);
  book.end(2);
  t.equal(book.areEnded, false);
  book.end('2');
  book.end('2');
  t.equal(book.areEnded, true);
  t.equal(book.begin(2), false, 'it has ended, and does not begin anew');
  const begun = Array.from({ length: 3000 }, (_, index) => book.begin(index + 10)).filter(Boolean).length;
  t.equal(begun, 1022, 'with 2 and "2" there are 1,024 besides the first');
  t.notOk(book.isKnown(2999));
});
