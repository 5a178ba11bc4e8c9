// What an upstream bills where it does not say so: a request's texts and their frame, never images; an answer's texts.
import { countTokens as countCl100k } from 'gpt-tokenizer/encoding/cl100k_base';
import { countTokens as countO200k } from 'gpt-tokenizer/encoding/o200k_base';
import t from 'tap';
import { createBodyMeter, createStreamMeter } from '../../src/stream/meter.ts';
import { createTokenizer } from '../../src/stream/tokens.ts';
import { anthropic } from '../../src/upstream/dialects/anthropic.ts';
import { chat } from '../../src/upstream/dialects/chat.ts';
import { completions } from '../../src/upstream/dialects/completions.ts';
import type { Dialect } from '../../src/upstream/dialects/dialect.ts';
import { plain } from '../../src/upstream/dialects/plain.ts';
import { responses } from '../../src/upstream/dialects/responses.ts';

const tokenizer = createTokenizer();
t.teardown(() => tokenizer.close());

function bytes(body: unknown): Uint8Array {
  return Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
}

const sum = (...texts: string[]) => texts.reduce((all, text) => all + countO200k(text), 0);

/** The messages of OpenAI's cookbook, "How to count tokens with tiktoken", for which it prints what its API reported. */
const cookbook = [
  { role: 'system', content: 'You are a helpful, pattern-following assistant that translates corporate jargon into plain English.' },
  { role: 'system', name: 'example_user', content: 'New synergies will help drive top-line growth.' },
  { role: 'system', name: 'example_assistant', content: 'Things working well together will increase revenue.' },
  {
    role: 'system',
    name: 'example_user',
    content: "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
  },
  { role: 'system', name: 'example_assistant', content: "Let's talk later when we're less busy about how to do better." },
  {
    role: 'user',
    content: "This late pivot means we don't have time to boil the ocean for the client deliverable.",
  },
];

t.test('messages are counted as OpenAI bills them', async (t) => {
  t.equal(await tokenizer.countPrompt('gpt-4', bytes({ messages: cookbook }), true), 129, 'the API reported 129');
  t.equal(await tokenizer.countPrompt('gpt-4o-mini', bytes({ messages: cookbook }), true), 124, 'the API reported 124');
  t.equal(
    await tokenizer.countPrompt(undefined, bytes({ model: 'gpt-4', messages: cookbook }), true),
    129,
    'the body names a model as well',
  );
});

t.test('every shape of prompt gives its texts', async (t) => {
  const image = { type: 'image_url', image_url: { url: `data:image/png;base64,${'QUJD'.repeat(200_000)}` } };
  const parameters = { type: 'object', properties: { city: { type: 'string' } } };
  const definition = { name: 'get_weather', description: 'The weather.', parameters };
  const cases: [what: string, body: object | string, isChat: boolean, expected: number | undefined][] = [
    ['one word, as 8 tokens', { messages: [{ role: 'user', content: 'Hello' }] }, true, 8],
    ['parts', { messages: [{ role: 'user', content: [{ type: 'text', text: 'Hello' }, image] }] }, true, 8],
    [
      'calls and their results',
      {
        messages: [
          {
            role: 'assistant',
            content: null,
            tool_calls: [{ id: 'c', type: 'function', function: { name: 'get', arguments: '{"a":1}' } }],
          },
          { role: 'tool', tool_call_id: 'c', content: 'sunny' },
        ],
      },
      true,
      9 + sum('assistant', 'get', '{"a":1}', 'tool', 'sunny'),
    ],
    [
      'tools and a schema',
      {
        messages: [{ role: 'user', content: 'Hello' }],
        tools: [{ type: 'function', function: definition }],
        response_format: { type: 'json_schema', json_schema: { name: 'x', schema: parameters } },
      },
      true,
      8 + sum(JSON.stringify(definition), JSON.stringify(parameters)),
    ],
    ['functions of old', { messages: [], functions: [definition] }, true, 3 + sum(JSON.stringify(definition))],
    ['Responses, a text', { input: 'Hello', instructions: 'Be kind.' }, true, 8 + 3 + sum('system', 'Be kind.')],
    [
      'Responses, items',
      {
        input: [
          {
            role: 'user',
            content: [
              { type: 'input_text', text: 'Hello' },
              { type: 'input_image', image_url: 'data:image/png;base64,QUJD' },
            ],
          },
          { type: 'function_call', call_id: 'c', name: 'get', arguments: '{}' },
          { type: 'function_call_output', call_id: 'c', output: 'sunny' },
        ],
        text: { format: { type: 'json_schema', schema: parameters } },
      },
      true,
      8 + 6 + sum('get', '{}', 'sunny', JSON.stringify(parameters)),
    ],
    [
      'Anthropic',
      {
        system: [{ type: 'text', text: 'Be kind.' }],
        messages: [
          { role: 'user', content: 'Hello' },
          { role: 'assistant', content: [{ type: 'tool_use', id: 't', name: 'get', input: { a: 1 } }] },
          {
            role: 'user',
            content: [
              { type: 'tool_result', tool_use_id: 't', content: [{ type: 'text', text: 'sunny' }] },
              { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'QUJD'.repeat(9000) } },
            ],
          },
        ],
      },
      true,
      15 + sum('system', 'Be kind.', 'user', 'Hello', 'assistant', 'get', '{"a":1}', 'user', 'sunny'),
    ],
    ['completions', { prompt: 'Hello world' }, false, 2],
    ['texts', { prompt: ['Hello', 'Hello world'] }, false, 3],
    ['tokens', { prompt: [1, 2, 3] }, false, 3],
    ['lists of tokens', { input: [[1, 2], [3]] }, false, 3],
    ['embeddings', { input: ['Hello', 'world'], dimensions: 3 }, false, 2],
    ['moderations', { input: [{ type: 'text', text: 'Hello' }, image] }, false, 1],
    ['special tokens are text here', { prompt: '<|endoftext|>' }, false, countO200k('<|endoftext|>', { disallowedSpecial: new Set() })],
    ['a prompt that lies upstream', { prompt: { id: 'pmpt_1' }, input: 'Hello' }, true, undefined],
    ['a conversation that lies upstream', { input: 'Hello', previous_response_id: 'resp_1' }, true, undefined],
    ['nothing', {}, true, undefined],
    ['odd types', { messages: 'x', input: 5, tools: { a: 1 }, prompt: false }, true, undefined],
    ['odd messages', { messages: [null, 'x', { content: 5, tool_calls: [1], name: {} }] }, true, undefined],
    ['no object', '[]', true, undefined],
    ['broken JSON', '{"messages":[', true, undefined],
    ['a form', '--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n', false, undefined],
    ['so deep that it cannot be written again', `{"messages":[],"tools":[${'['.repeat(50_000)}${']'.repeat(50_000)}]}`, true, undefined],
    ['nothing at all', '', true, undefined],
    ['more than 4 MiB', { prompt: 'x '.repeat(2_200_000) }, false, undefined],
  ];
  for (const [what, body, isChat, expected] of cases) t.equal(await tokenizer.countPrompt(undefined, bytes(body), isChat), expected, what);
  t.equal(
    await tokenizer.countPrompt('gpt-4', bytes({ prompt: '水缓慢地流过' }), false),
    countCl100k('水缓慢地流过'),
    'in the encoding of the model',
  );
});

t.test('E17 a prompt of 3 MiB that is hard to encode holds up nobody, and its bytes are not copied', async (t) => {
  const letters = Array.from({ length: 1_000_000 }, (_, i) => String.fromCharCode(0x4e00 + ((i * 7919) % 5000))).join('');
  const body = new TextEncoder().encode(JSON.stringify({ prompt: letters }));
  const order: string[] = [];
  await tokenizer.count('gpt-4o', 'loads the vocabulary');
  const long = tokenizer.countPrompt('gpt-4o', body, false).then(() => order.push('long'));
  t.equal(body.byteLength, 0, 'given away');
  await tokenizer.count('gpt-4o', 'Hello').then(() => order.push('short'));
  t.same(order, ['short']);
  await tokenizer.close();
  await long;
  t.same(order, ['short', 'long'], 'close leaves nobody waiting');
});

t.test('a meter counts input from the prompt only where it was not reported', async (t) => {
  const prompt = () => bytes({ messages: cookbook });
  const text = `data: ${JSON.stringify({ model: 'gpt-4o', choices: [{ index: 0, delta: { content: 'Hello' } }] })}\n\n`;
  const usage = `data: ${JSON.stringify({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 1 } })}\n\n`;
  const started = `data: ${JSON.stringify({ type: 'message_start', message: { usage: { input_tokens: 7, output_tokens: 1 } } })}\n\n`;
  const cases: [what: string, stream: string, dialect: typeof chat, expected: object | undefined][] = [
    ['nothing reported', text, chat, { input: 124, inputSource: 'counted', output: 1, outputSource: 'counted' }],
    ['reported while it ran', text + usage, chat, { input: 7, inputSource: 'running' }],
    ['at the start', started, anthropic, { input: 7, inputSource: 'running', outputSource: undefined }],
    ['no text yet', ': hello\n\n', chat, { input: 124, inputSource: 'counted', output: 0, outputSource: undefined }],
  ];
  for (const [what, stream, dialect, expected] of cases) {
    const meter = createStreamMeter(dialect, tokenizer);
    meter.observe(stream);
    t.match(await meter.usage(prompt), expected, what);
  }
  const silent = createStreamMeter(chat, tokenizer);
  t.equal(await silent.usage(() => bytes('no JSON')), undefined);
  const body = createBodyMeter(plain, tokenizer);
  body.observe('{"model":"text-embedding-3-small","data":[]}');
  t.match(await body.usage(() => bytes({ input: 'Hello' })), { input: 1, inputSource: 'counted', output: 0, outputSource: undefined });
  const reported = createBodyMeter(plain, tokenizer);
  reported.observe('{"usage":{"prompt_tokens":8}}');
  t.match(await reported.usage(() => bytes({ input: 'Hello' })), { input: 8, inputSource: 'reported' });
});

t.test('an answer that was not streamed and reports nothing: the tokens of all that was written', async (t) => {
  const call = { id: 'c', type: 'function', function: { name: 'find', arguments: '{"q":"x"}' } };
  const cases: [what: string, dialect: Dialect, answer: object, texts: string[]][] = [
    [
      'chat',
      chat,
      {
        choices: [
          { message: { role: 'assistant', content: 'Good morning', reasoning_content: 'Hm' } },
          { message: { content: null, tool_calls: [call] } },
        ],
      },
      ['Good morning', 'Hm', 'find', '{"q":"x"}'],
    ],
    ['completions', completions, { choices: [{ text: 'one' }, { text: ' two' }] }, ['one', ' two']],
    [
      'responses',
      responses,
      {
        output: [
          { type: 'reasoning', summary: [{ type: 'summary_text', text: 'Hm' }] },
          {
            type: 'message',
            content: [
              { type: 'output_text', text: 'Good morning' },
              { type: 'refusal', refusal: 'No' },
            ],
          },
          { type: 'function_call', name: 'find', arguments: '{}' },
        ],
      },
      ['Hm', 'Good morning', 'No', 'find', '{}'],
    ],
    [
      'anthropic',
      anthropic,
      {
        content: [
          { type: 'thinking', thinking: 'Hm' },
          { type: 'text', text: 'Good' },
          { type: 'tool_use', name: 'find', input: { q: 1 } },
        ],
      },
      ['Hm', 'Good', 'find', '{"q":1}'],
    ],
  ];
  for (const [what, dialect, answer, texts] of cases) {
    const meter = createBodyMeter(dialect, tokenizer);
    const text = Buffer.from(JSON.stringify(answer)).toString('latin1');
    for (let at = 0; at < text.length; at += 11) meter.observe(text.slice(at, at + 11));
    const output = sum(...texts);
    t.match(await meter.usage(), { output, outputSource: 'counted', inputSource: undefined }, what);
  }
  const broken = createBodyMeter(chat, tokenizer);
  broken.observe('{"choices":[{"message":{"content":"Good');
  t.equal(await broken.usage(), undefined, 'half an answer cannot be read');
  const embeddings = createBodyMeter(plain, tokenizer);
  embeddings.observe('{"data":[{"embedding":[1,2]}]}');
  t.equal(await embeddings.usage(), undefined, 'no text');
});
