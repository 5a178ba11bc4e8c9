// Calls between two processes over the channel that joins them: what one of them serves, the other calls by name.
import type { Worker } from 'node:cluster';

/** What joins two processes, seen from one of them. Messages are structured clones, and arrive in order. */
export interface Channel {
  /** What is sent to a process that is gone is lost; `isLost` then. */
  send(message: object, onSent: (isLost: boolean) => void): void;
  onMessage(listener: (message: unknown) => void): void;
  /** No message will come any more. */
  onClosed(listener: () => void): void;
}

/** What one side serves, by name. */
export type Calls = { readonly [name: string]: (...args: never[]) => unknown };

/**
 * Calls what the other side serves.
 * @throws what it threw there, as an Error with the same message and code; or that the other side is gone
 */
export type Call<Served extends Calls> = <Name extends keyof Served & string>(
  name: Name,
  ...args: Parameters<Served[Name]>
) => Promise<Awaited<ReturnType<Served[Name]>>>;

/** What of an error travels: enough to tell why a listener could not listen. */
export interface Failure {
  readonly message: string;
  readonly code?: string;
  readonly address?: string;
  readonly port?: number;
}

type Message =
  | { readonly call: string; readonly id: number; readonly args: readonly unknown[] }
  | { readonly answer: number; readonly value?: unknown; readonly failure?: Failure };

interface Waiting {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** @param served what the other side may call here */
export function createLine<Served extends Calls>(channel: Channel, served: Calls): Call<Served> {
  const waiting = new Map<number, Waiting>();
  let lastId = 0;
  let isClosed = false;

  function giveUp(id: number): void {
    waiting.get(id)?.reject(new Error('the other process is gone'));
    waiting.delete(id);
  }

  async function serve({ call, id, args }: Extract<Message, { call: string }>): Promise<void> {
    let answer: Message;
    try {
      answer = { answer: id, value: await served[call]?.(...(args as never[])) };
    } catch (error) {
      answer = { answer: id, failure: failureOf(error) };
    }
    channel.send(answer, () => undefined);
  }

  channel.onMessage((received) => {
    const message = received as Message;
    if ('call' in message) return void serve(message);
    const asked = waiting.get(message.answer);
    waiting.delete(message.answer);
    if (message.failure === undefined) asked?.resolve(message.value);
    else asked?.reject(errorOf(message.failure));
  });
  channel.onClosed(() => {
    isClosed = true;
    for (const id of [...waiting.keys()]) giveUp(id);
  });

  return (call, ...args) =>
    new Promise((resolve, reject) => {
      const id = ++lastId;
      waiting.set(id, { resolve: resolve as Waiting['resolve'], reject });
      if (isClosed) giveUp(id);
      else channel.send({ call, id, args }, (isLost) => isLost && giveUp(id));
    });
}

/** Between the primary and a worker, for either. */
export function channelOf(worker: Worker): Channel {
  return {
    send: (message, onSent) => void worker.send(message, undefined, undefined, (error) => onSent(Boolean(error))),
    onMessage: (listener) => void worker.on('message', listener),
    onClosed: (listener) => void worker.on('disconnect', listener),
  };
}

/** What the other side answers; undefined where it is gone, or takes longer. */
export async function inTime<T>(answer: Promise<T>, mostMs: number): Promise<T | undefined> {
  let deadline: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    deadline = setTimeout(resolve, mostMs, undefined);
  });
  const first = await Promise.race([answer.catch(() => undefined), late]);
  clearTimeout(deadline);
  return first;
}

export function failureOf(error: unknown): Failure {
  const { message = 'unknown', code, address, port } = error as Partial<Failure>;
  return { message, ...(code !== undefined && { code }), ...(address !== undefined && { address }), ...(port !== undefined && { port }) };
}

export function errorOf({ message, ...facts }: Failure): Error {
  return Object.assign(new Error(message), facts);
}
