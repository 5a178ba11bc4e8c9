// Calls the client's tools as a model would: a name, and arguments that fit the tool's JSON schema, in fragments.
import { type Fields, isFields } from './call.ts';
import { wrongValue } from './fields.ts';

/** A call to make; the fragments joined are the arguments' JSON, and each counts as one token. */
export interface ToolCall {
  readonly name: string;
  readonly fragments: readonly string[];
}

/** Schemas nested deeper than this (or that refer to themselves) get null. */
const MAX_DEPTH = 8;

/**
 * The call that the tools of a request invite: the tool that `tool_choice` names, else the first function; none with `none`.
 * Takes the shapes of both APIs (chat nests name and parameters under `function`, Responses does not). Throws 400 refusals.
 */
export function chooseCall(fields: Fields): ToolCall | undefined {
  const tools = fields.tools ?? [];
  if (!Array.isArray(tools)) throw wrongValue('tools', 'an array');
  if (fields.tool_choice === 'none') return undefined;
  const wanted = isFields(fields.tool_choice) ? functionOf(fields.tool_choice).name : undefined;
  const known = tools.filter((tool): tool is Fields => isFields(tool) && tool.type === 'function').map(functionOf);
  const tool = wanted === undefined ? known[0] : known.find(({ name }) => name === wanted);
  if (tool === undefined && wanted !== undefined) throw wrongValue('tool_choice', "the name of one of 'tools'");
  if (tool === undefined) return undefined;
  if (typeof tool.name !== 'string' || tool.name === '') throw wrongValue('tools', 'functions, each with a name');
  return { name: tool.name, fragments: splitJson(JSON.stringify(fillSchema(tool.parameters ?? {}, 'object'))) };
}

function functionOf(tool: Fields): Fields {
  return isFields(tool.function) ? tool.function : tool;
}

/** Punctuation and words of a JSON text apart, the way tokenizers cut it. */
function splitJson(json: string): string[] {
  return json.match(/[\s"{}[\]:,]+|[^\s"{}[\]:,]{1,12}/gu) ?? [];
}

/** The plainest value that a JSON schema allows. It understands what tools use: type, properties, enum, const, anyOf. */
function fillSchema(schema: unknown, fallback: string, depth = 0): unknown {
  if (!isFields(schema) || depth > MAX_DEPTH) return fallback === 'object' && depth === 0 ? {} : null;
  if ('const' in schema) return schema.const;
  if ('default' in schema) return schema.default;
  for (const list of [schema.enum, schema.examples]) if (Array.isArray(list) && list.length > 0) return list[0];
  const options = schema.anyOf ?? schema.oneOf;
  if (Array.isArray(options) && options.length > 0) return fillSchema(options[0], 'string', depth + 1);
  const type: unknown = Array.isArray(schema.type) ? schema.type[0] : (schema.type ?? (isFields(schema.properties) ? 'object' : fallback));
  return fillType(type, schema, depth);
}

function fillType(type: unknown, schema: Fields, depth: number): unknown {
  if (type === 'number' || type === 'integer') return typeof schema.minimum === 'number' ? schema.minimum : 1;
  if (type === 'boolean') return true;
  if (type === 'null') return null;
  if (type === 'array') return Number(schema.minItems ?? 0) > 0 ? [fillSchema(schema.items, 'string', depth + 1)] : [];
  if (type !== 'object') return 'demo';
  const properties = isFields(schema.properties) ? Object.entries(schema.properties) : [];
  return Object.fromEntries(properties.map(([name, property]) => [name, fillSchema(property, 'string', depth + 1)]));
}
