// The API's paths by template: what metrics call them, which dialect they speak, and what OpenTelemetry calls what they do.

import { anthropic } from './dialects/anthropic.ts';
import { speech, transcription } from './dialects/audio.ts';
import { chat } from './dialects/chat.ts';
import { completions } from './dialects/completions.ts';
import type { Dialect } from './dialects/dialect.ts';
import { images } from './dialects/images.ts';
import { plain } from './dialects/plain.ts';
import { responses } from './dialects/responses.ts';

export interface Endpoint {
  /** The template, such as `/v1/responses/{response_id}`, or `other`. */
  readonly endpoint: string;
  readonly dialect: Dialect;
  /** gen_ai.operation.name (OpenTelemetry GenAI semantic conventions), where a model is asked for something. */
  readonly operation: string | undefined;
  readonly leaves: Leaves;
}

/**
 * What a call leaves behind at its upstream, where later calls look for it (files, batches, stored answers): `ifStored`, if it says
 * `store: true`; `unlessStored`, but for `store: false`. Such a call must not end up at another upstream than those that follow it.
 */
export type Leaves = 'nothing' | 'ifStored' | 'unlessStored' | 'something';

interface Row {
  readonly dialect: Dialect;
  readonly operation?: string;
  /** By default something: of a path that nobody knows nobody knows that either. */
  readonly leaves?: Leaves;
  /** The method that this is said of; POST if absent. */
  readonly method?: 'GET';
}

const NOTHING = { leaves: 'nothing' } as const;
const CHAT: Row = { dialect: chat, operation: 'chat', leaves: 'ifStored' };
const RESPONSES: Row = { dialect: responses, operation: 'chat', leaves: 'unlessStored' };
const IMAGES: Row = { dialect: images, operation: 'generate_content', ...NOTHING };
const RUN: Row = { dialect: plain, operation: 'invoke_agent' };
const MODEL: Row = { dialect: plain, method: 'GET', ...NOTHING };
const PLAIN: Row = { dialect: plain };

/** Templates under /v1 that are more than a plain path. */
const SPECIAL: Record<string, Row> = {
  'chat/completions': CHAT,
  completions: { dialect: completions, operation: 'text_completion', ...NOTHING },
  responses: RESPONSES,
  'responses/{response_id}': { dialect: responses, operation: 'chat' },
  'responses/compact': RESPONSES,
  'responses/input_tokens': { dialect: plain, ...NOTHING },
  messages: { dialect: anthropic, operation: 'chat', ...NOTHING },
  'messages/count_tokens': { dialect: anthropic, ...NOTHING },
  embeddings: { dialect: plain, operation: 'embeddings', ...NOTHING },
  moderations: { dialect: plain, ...NOTHING },
  'models/{model}': MODEL,
  'audio/speech': { dialect: speech, operation: 'generate_content', ...NOTHING },
  'audio/transcriptions': { dialect: transcription, operation: 'generate_content', ...NOTHING },
  'audio/translations': { dialect: transcription, operation: 'generate_content', ...NOTHING },
  'images/generations': IMAGES,
  'images/edits': IMAGES,
  'images/variations': IMAGES,
  videos: { dialect: plain, operation: 'generate_content' },
  'videos/{video_id}/remix': { dialect: plain, operation: 'generate_content' },
  'threads/runs': RUN,
  'threads/{thread_id}/runs': RUN,
  'threads/{thread_id}/runs/{run_id}/submit_tool_outputs': RUN,
  'vector_stores/{vector_store_id}/search': { dialect: plain, operation: 'retrieval' },
};

/** All others, a family a line. */
const PATHS = `
sluicegate/probe
chat/completions/{completion_id} chat/completions/{completion_id}/messages
responses/{response_id}/cancel responses/{response_id}/input_items
messages/batches messages/batches/{batch_id} messages/batches/{batch_id}/cancel messages/batches/{batch_id}/results
models
files files/{file_id} files/{file_id}/content
uploads uploads/{upload_id}/parts uploads/{upload_id}/complete uploads/{upload_id}/cancel
batches batches/{batch_id} batches/{batch_id}/cancel
fine_tuning/jobs fine_tuning/jobs/{job_id} fine_tuning/jobs/{job_id}/cancel fine_tuning/jobs/{job_id}/pause fine_tuning/jobs/{job_id}/resume
fine_tuning/jobs/{job_id}/events fine_tuning/jobs/{job_id}/checkpoints
fine_tuning/checkpoints/{checkpoint}/permissions fine_tuning/checkpoints/{checkpoint}/permissions/{permission_id}
fine_tuning/alpha/graders/run fine_tuning/alpha/graders/validate
vector_stores vector_stores/{vector_store_id} vector_stores/{vector_store_id}/files vector_stores/{vector_store_id}/files/{file_id}
vector_stores/{vector_store_id}/files/{file_id}/content vector_stores/{vector_store_id}/file_batches
vector_stores/{vector_store_id}/file_batches/{batch_id} vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel
vector_stores/{vector_store_id}/file_batches/{batch_id}/files
assistants assistants/{assistant_id}
threads threads/{thread_id} threads/{thread_id}/messages threads/{thread_id}/messages/{message_id}
threads/{thread_id}/runs/{run_id} threads/{thread_id}/runs/{run_id}/cancel
threads/{thread_id}/runs/{run_id}/steps threads/{thread_id}/runs/{run_id}/steps/{step_id}
realtime realtime/sessions realtime/transcription_sessions realtime/client_secrets realtime/translations/client_secrets realtime/calls
realtime/calls/{call_id}/accept realtime/calls/{call_id}/reject realtime/calls/{call_id}/refer realtime/calls/{call_id}/hangup
containers containers/{container_id} containers/{container_id}/files containers/{container_id}/files/{file_id}
containers/{container_id}/files/{file_id}/content
conversations conversations/{conversation_id} conversations/{conversation_id}/items conversations/{conversation_id}/items/{item_id}
evals evals/{eval_id} evals/{eval_id}/runs evals/{eval_id}/runs/{run_id} evals/{eval_id}/runs/{run_id}/cancel
evals/{eval_id}/runs/{run_id}/output_items evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}
videos/{video_id} videos/{video_id}/content videos/edits videos/extensions videos/characters videos/characters/{character_id}
audio/voices audio/voices/{voice_id} audio/voice_consents audio/voice_consents/{consent_id}
`;

interface Branch {
  readonly next: Map<string, Branch>;
  leaf?: { readonly label: string; readonly row: Row };
}

const OTHER: Endpoint = { endpoint: 'other', dialect: plain, operation: undefined, leaves: 'something' };
const root = createTree();
/** Paths without a parameter, as most are asked for. */
const KNOWN = new Map([...Object.keys(SPECIAL), ...PATHS.trim().split(/\s+/)].map((path) => [`/v1/${path}`, find(path.split('/'))]));

/**
 * The endpoint of a request, by method and raw path (without query). Paths under `/openai`, Azure's, with or without the deployment
 * in them, are the same endpoints as under `/v1`. A path that is none of the API's is `other`, plain.
 */
export function routeEndpoint(method: string, path: string): Endpoint {
  const leaf = KNOWN.get(path) ?? find(restOf(path).split('/'));
  if (leaf === undefined) return OTHER;
  const { dialect, operation, leaves = 'something', method: saidOf = 'POST' } = leaf.row;
  return {
    endpoint: leaf.label,
    dialect,
    operation: method === 'POST' ? operation : undefined,
    leaves: method === saidOf ? leaves : 'something',
  };
}

/** What stands behind `/v1/`, `/openai/v1/`, `/openai/deployments/{deployment}/` or `/openai/`. */
function restOf(path: string): string {
  const [, rest = ''] = /^\/(?:v1|openai(?:\/v1|\/deployments\/[^/]+)?)\/(.*?)\/?$/.exec(path) ?? [];
  return rest;
}

function find(segments: string[]): Branch['leaf'] {
  let branch: Branch | undefined = root;
  for (const segment of segments) {
    if (segment === '') return undefined;
    branch = branch.next.get(segment) ?? branch.next.get('*');
    if (branch === undefined) return undefined;
  }
  return branch.leaf;
}

function createTree(): Branch {
  const tree: Branch = { next: new Map() };
  for (const path of PATHS.trim().split(/\s+/)) plant(tree, path, path, PLAIN);
  for (const [path, row] of Object.entries(SPECIAL)) plant(tree, path, path, row);
  plant(tree, 'models/{owner}/{model}', 'models/{model}', MODEL); // open models have a slash in their names
  return tree;
}

function plant(tree: Branch, path: string, label: string, row: Row): void {
  let branch = tree;
  for (const segment of path.split('/')) {
    const key = segment.startsWith('{') ? '*' : segment;
    const next: Branch = branch.next.get(key) ?? { next: new Map() };
    branch.next.set(key, next);
    branch = next;
  }
  branch.leaf = { label: `/v1/${label}`, row };
}
