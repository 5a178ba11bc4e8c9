// What the demo says. Whoever reads it has just sent a first request: every sentence should be true, and of use to them.

/** The answers; the prompt's hash picks one. */
export const PARAGRAPHS: readonly string[] = [
  'Hello from the demo upstream. I am not a language model, only a small program that writes the way one does: a short pause, ' +
    'then a word at a time. Sluicegate relays each word the moment I write it, so what you see is the real pace of the stream. ' +
    'Start Sluicegate again with OPENAI_API_KEY set, and the same URL leads to a real model.',
  'Try stopping a streamed answer half way, with Ctrl-C or by closing the tab. Sluicegate closes its connection to the upstream ' +
    'at once, so that a real provider stops generating, and counts the tokens that had come through by then. ' +
    'Its live page, at http://127.0.0.1:9464 unless you moved it, shows streams as they come and go.',
  'With "stream": true this answer is a series of server-sent events, one for each word; without it, one JSON document. ' +
    'Sluicegate changes neither: the content reaches you as the upstream sent it, while tokens, latencies and outcomes are measured ' +
    'on the side. Prometheus finds them under /metrics on the ops port, 9464 by default.',
  'Any OpenAI client works here: set its base URL to that of Sluicegate and leave the rest of your code alone. This demo answers ' +
    'chat, legacy completions, Responses, embeddings, file uploads and speech. Ask it to "say 500 tokens" for a longer stream, ' +
    'or write "repeat after me:" and something of your own.',
  'Unless told otherwise, the demo waits a quarter of a second before its first word and then says about ' +
    'forty words a second, much like a hosted model. The request headers x-demo-ttft-ms and x-demo-tokens-per-second ' +
    'change that for one request; 0 means as fast as it goes. The model name demo-reasoning thinks aloud before it answers.',
  'If a streamed answer arrives in lumps, something between you and Sluicegate holds it back, most often a proxy that buffers. ' +
    'Run "sluicegate doctor" with the URL that your clients use: it times events along the whole way and says which setting to ' +
    'change. If the words come evenly, all is well.',
];

/** What `demo-reasoning` thinks first. */
export const REASONING =
  'The user sent a prompt to the demo upstream. I cannot understand it, so I should not pretend to. ' +
  'A short paragraph about what they can try next will serve them better.';

/** What follows a tool's result, which stands before it. */
export const AFTER_TOOL =
  'That is what your tool answered. The call went out to you in fragments, as a model writes it, and its result came back with ' +
  'your last request: the whole round trip works through Sluicegate.';
