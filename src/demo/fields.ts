// Reads the fields of a client's JSON, and names the parameter at fault as OpenAI does.
import { type Fields, isFields } from './call.ts';
import { createRefusal, type Refusal } from './refusal.ts';

/** The one model name that the demo does not know, for whoever wants to see that error. */
export const MISSING_MODEL = 'no-such-model';

/** Refusal for a parameter of the wrong type or value. `wanted` completes "must be". */
export function wrongValue(param: string, wanted: string): Refusal {
  return createRefusal(400, `Invalid value for '${param}': it must be ${wanted}.`, { param, code: 'invalid_value' });
}

/** Refusal for a parameter that is not there. */
export function missing(param: string): Refusal {
  return createRefusal(400, `Missing required parameter: '${param}'.`, { param, code: 'missing_required_parameter' });
}

/** A parameter that must be there, whatever it is. */
export function readRequired(fields: Fields, param: string): unknown {
  const value = fields[param];
  if (value === undefined || value === null) throw missing(param);
  return value;
}

/** A parameter that must be a string and not empty. */
export function readText(fields: Fields, param: string): string {
  const value = readRequired(fields, param);
  if (typeof value !== 'string' || value === '') throw wrongValue(param, 'a string that is not empty');
  return value;
}

/** The model's name, to be echoed. Every name is known but MISSING_MODEL (404). */
export function readModel(fields: Fields): string {
  return checkModel(readText(fields, 'model'));
}

/** Lets every model name through but MISSING_MODEL, which is a 404 refusal. */
export function checkModel(model: string): string {
  if (model !== MISSING_MODEL) return model;
  throw createRefusal(404, `The model \`${model}\` does not exist or you do not have access to it.`, { code: 'model_not_found' });
}

/** An integer between `min` and `max`, or undefined where it is absent or null. */
export function readInteger(fields: Fields, param: string, min: number, max: number): number | undefined {
  const value = fields[param] ?? undefined;
  if (value === undefined) return undefined;
  if (Number.isInteger(value) && (value as number) >= min && (value as number) <= max) return value as number;
  throw wrongValue(param, `an integer from ${min} to ${max}`);
}

/** A boolean, false where it is absent or null. */
export function readFlag(fields: Fields, param: string): boolean {
  const value = fields[param] ?? false;
  if (typeof value !== 'boolean') throw wrongValue(param, 'a boolean');
  return value;
}

/** `stop`: a string or up to four of them; an empty one stops nothing. */
export function readStop(fields: Fields): string[] {
  const stop = fields.stop ?? [];
  const list: unknown[] = Array.isArray(stop) ? stop : [stop];
  if (list.length > 4 || !list.every((one) => typeof one === 'string')) throw wrongValue('stop', 'a string or up to four strings');
  return list.filter((one) => one !== '');
}

/** Whether `stream` is asked for, and with a usage chunk. `stream_options` without `stream` is refused, as OpenAI does. */
export function readStreaming(fields: Fields): { isStream: boolean; hasUsage: boolean } {
  const isStream = readFlag(fields, 'stream');
  const options = fields.stream_options ?? undefined;
  if (options === undefined) return { isStream, hasUsage: false };
  if (!isStream) throw createRefusal(400, "'stream_options' is only allowed when 'stream' is true.", { param: 'stream_options' });
  if (!isFields(options)) throw wrongValue('stream_options', 'an object');
  return { isStream, hasUsage: readFlag(options, 'include_usage') };
}

/** One text or several, or token ids in their place (which become texts of as many words). Throws 400 where there is none. */
export function readTexts(fields: Fields, param: string, maxCount: number): string[] {
  const value = readRequired(fields, param);
  const list: unknown[] = Array.isArray(value) && typeof value[0] !== 'number' ? value : [value];
  if (list.length === 0 || list.length > maxCount) throw wrongValue(param, `a text, or 1 to ${maxCount} of them`);
  return list.map((one) => {
    if (typeof one === 'string') return one;
    if (Array.isArray(one) && one.length > 0 && one.every((id) => Number.isInteger(id))) return one.join(' ');
    throw wrongValue(param, 'a string, an array of token ids, or an array of either');
  });
}
