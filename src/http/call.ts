// What a call asks for, read from its JSON body as it passes: the model, whether it streams, how much it may write.
import type { IncomingMessage } from 'node:http';
import { GatewayError } from '../errors.ts';
import { decodeString, type Member } from '../stream/json.ts';
import { createJsonBody, type JsonBody } from '../stream/json-body.ts';
import { askedMembers, MAX_OPTIONS_BYTES } from '../upstream/ask.ts';
import type { Leaves } from '../upstream/endpoints.ts';
import { countHeader } from '../upstream/headers.ts';
import type { Splice } from '../upstream/splice.ts';

/** By the APIs' ages: completions, chat, Responses. */
const OUTPUT_BOUNDS = ['max_tokens', 'max_completion_tokens', 'max_output_tokens'] as const;
/** Where some gateways and providers look for further models (OpenRouter, LiteLLM). */
const FURTHER_MODELS = ['models', 'fallbacks'] as const;
/** What ties a call to answers that an upstream has stored (OpenAI API reference, Responses). */
const STORED = ['previous_response_id', 'conversation', 'background'] as const;
const WANTED = ['model', 'n', 'store', ...STORED, ...FURTHER_MODELS, ...askedMembers, ...OUTPUT_BOUNDS];

export interface Call {
  /** Looks at the next bytes of the body. */
  observe(chunk: Buffer): void;
  readonly body: JsonBody;
  /** Whether the whole body has been seen, and asks for a stream. */
  isStream(): boolean;
  /**
   * The model that the whole body names, if it names one.
   * @throws GatewayError `invalid_request` where parsers could read two of them, or none: what is authorised must be what is sent
   */
  model(): string | undefined;
  /** The model that it seems to name, for the record only. */
  seemsFor(): string | undefined;
  /** How the whole body is made to name another model; undefined where it names none. */
  rename(model: string): Splice | undefined;
  /** Whether the call, of an endpoint that leaves so much, leaves nothing behind, and goes by nothing that was left before. */
  leavesNothing(leaves: Leaves): boolean;
  /** Whether the body names models besides `model`. */
  namesFurtherModels(): boolean;
  /** The most tokens that the answer may have, all choices together; undefined where the call sets no bound. */
  maxOutputTokens(): number | undefined;
}

/** Whether a request says that its body is JSON: one reading of its content type, used everywhere. */
export function isJsonRequest({ method, headers }: IncomingMessage): boolean {
  return method === 'POST' && /^application\/json\s*(?:;|$)/i.test(headers['content-type'] ?? '');
}

/** Whether there is one reading of the bytes as JSON: an upstream that goes by another charset, or by a second header, reads other keys. */
function isPlainJson(request: IncomingMessage): boolean {
  if (!isJsonRequest(request) || request.headers['content-encoding'] !== undefined) return false;
  return countHeader(request.rawHeaders, 'content-type') === 1 && charsetsOf(request.headers['content-type'] ?? '').every(isUtf8);
}

function charsetsOf(type: string): string[] {
  if (!type.includes(';')) return [];
  return Array.from(type.matchAll(/charset\s*=\s*["']?([^"';\s]*)/gi), ([, charset = '']) => charset);
}

function isUtf8(charset: string): boolean {
  return /^(?:utf-?8|us-ascii)$/i.test(charset);
}

/** Undefined where the request's body cannot be read here: it is no JSON, compressed, or of an encoding that is not UTF-8. */
export function createCall(request: IncomingMessage): Call | undefined {
  if (!isPlainJson(request)) return undefined;
  return new JsonCall();
}

class JsonCall implements Call {
  readonly body: JsonBody = createJsonBody(WANTED, MAX_OPTIONS_BYTES);

  observe(chunk: Buffer): void {
    this.body.observe(chunk);
  }

  isStream(): boolean {
    const { members } = this.body;
    return members.isComplete && members.value('stream') === 'true';
  }

  model(): string | undefined {
    const { members } = this.body;
    if (!members.isComplete) throw new GatewayError('invalid_request', 'The request body is not a JSON object.');
    if (members.hasLookalike('model')) throw new GatewayError('invalid_request', 'The request body has the key "model" in another case.');
    const member = members.member('model');
    if (member === undefined) return undefined;
    const model = decodeString(member.raw ?? '');
    if (member.occurrences > 1 || model === undefined) {
      throw new GatewayError('invalid_request', 'The request body must name one model, as a string.');
    }
    return model;
  }

  seemsFor(): string | undefined {
    return decodeString(this.body.members.value('model') ?? '');
  }

  rename(model: string): Splice | undefined {
    const { members, bomBytes } = this.body;
    const member = members.member('model');
    if (member === undefined) return undefined;
    return { start: member.valueStart + bomBytes, end: member.valueEnd + bomBytes, text: asciiJson(model) };
  }

  leavesNothing(leaves: Leaves): boolean {
    if (leaves === 'nothing' || leaves === 'something') return leaves === 'nothing';
    const { members } = this.body;
    const store = members.member('store');
    const isUnstored = store?.raw === 'false' || (leaves === 'ifStored' && (store === undefined || store.raw === 'null'));
    return isUnstored && (store?.occurrences ?? 1) === 1 && !STORED.some((name) => isGiven(members.member(name)));
  }

  namesFurtherModels(): boolean {
    const { members } = this.body;
    return FURTHER_MODELS.some((name) => members.member(name) !== undefined || members.hasLookalike(name));
  }

  maxOutputTokens(): number | undefined {
    const { members } = this.body;
    const bounds = OUTPUT_BOUNDS.map((name) => count(members.value(name))).filter((bound) => bound !== undefined);
    return bounds.length === 0 ? undefined : Math.max(...bounds) * (count(members.value('n')) ?? 1);
  }
}

function isGiven(member: Member | undefined): boolean {
  return member !== undefined && member.raw !== 'null' && member.raw !== 'false';
}

/** JSON whose bytes are the same in every encoding. */
function asciiJson(text: string): string {
  return JSON.stringify(text).replace(/[^ -~]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function count(raw: string | undefined): number | undefined {
  return raw !== undefined && /^[1-9]\d{0,8}$/.test(raw) ? Number(raw) : undefined;
}
