// The files that a configuration names: read with it, so that it is taken whole, with what they hold, or not at all.
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { createSecureContext } from 'node:tls';
import { keysOf, type Report, valueAt } from './check.ts';
import type { Path } from './load.ts';
import { isCredential } from './scalars.ts';

/** A file as it was when the configuration was loaded. */
export interface NamedFile {
  readonly path: string;
  readonly text: string;
}

/** Reads the text of a file. @throws an error with a `code` such as ENOENT */
export type ReadFile = (path: string) => string;

export interface Files {
  /**
   * The file of this name; a relative one stands beside the configuration file. Undefined where it cannot be read.
   * @throws nothing: a file is read once, and what was wrong with it is told by `fault`
   */
  get(name: string): NamedFile | undefined;
  /** Why a file cannot be read: the error's code. */
  fault(name: string): string | undefined;
}

/** @param folder where the configuration file is */
export function openFiles(folder: string, read: ReadFile = (path) => readFileSync(path, 'utf8')): Files {
  const found = new Map<string, NamedFile | string>();
  function look(name: string): NamedFile | string {
    const path = resolve(folder, name);
    const known = found.get(path);
    if (known !== undefined) return known;
    let file: NamedFile | string;
    try {
      file = { path, text: read(path) };
    } catch (error) {
      file = (error as NodeJS.ErrnoException).code ?? 'unknown';
    }
    found.set(path, file);
    return file;
  }
  return {
    get(name) {
      const file = look(name);
      return typeof file === 'string' ? undefined : file;
    },
    fault(name) {
      const file = look(name);
      return typeof file === 'string' ? file : undefined;
    },
  };
}

/** Checks that every file that is named can be read, and is what it should be. */
export function checkFiles(tree: unknown, files: Files, report: Report): void {
  const check = (path: Path, holds: (text: string) => boolean, right: string) => {
    const name = valueAt(tree, path);
    if (typeof name !== 'string' || name === '' || name === 'off') return;
    const fault = files.fault(name);
    if (fault !== undefined) report(path, `cannot be read (${fault}); name a file that can, from the configuration file's folder`);
    else if (!holds(files.get(name)?.text ?? '')) report(path, right);
  };
  const checkPair = (cert: Path, key: Path) => {
    check(cert, isCertificate, 'holds no certificate; name a PEM file that begins with -----BEGIN CERTIFICATE-----');
    check(key, isPrivateKey, 'holds no private key without a passphrase; name such a PEM file');
    checkMatch(tree, files, { cert, key }, report);
  };
  checkPair(['server', 'tls', 'cert'], ['server', 'tls', 'key']);
  for (const name of keysOf(valueAt(tree, ['upstreams']))) {
    const of = (key: string) => ['upstreams', name, key];
    check(of('apiKeyFile'), (text) => isCredential(text.trim()), 'holds no key; write one key into it, of visible ASCII');
    check(of('caFile'), isCertificate, 'holds no certificate; name a PEM file that begins with -----BEGIN CERTIFICATE-----');
    checkPair(of('certFile'), of('keyFile'));
  }
}

function checkMatch(tree: unknown, files: Files, paths: { cert: Path; key: Path }, report: Report): void {
  const [cert, key] = [paths.cert, paths.key].map((path) => {
    const name = valueAt(tree, path);
    return typeof name === 'string' && name !== 'off' ? name : undefined;
  });
  const fileOf = (name: string | undefined) => (name === undefined ? '' : (files.get(name)?.text ?? ''));
  if ((cert === undefined) !== (key === undefined)) {
    const missing = cert === undefined ? paths.cert : paths.key;
    if (valueAt(tree, missing.slice(0, -1)) !== undefined) report(missing, 'is missing; a certificate and its key go together');
  } else if (isCertificate(fileOf(cert)) && isPrivateKey(fileOf(key))) {
    const isPair = new X509Certificate(fileOf(cert)).checkPrivateKey(createPrivateKey(fileOf(key)));
    if (!isPair) report(paths.key, 'is not the key of the certificate; name the one that it was made with');
    // What follows the first certificate, and what OpenSSL finds too weak.
    else if (!succeeds(() => createSecureContext({ cert: fileOf(cert), key: fileOf(key) })))
      report(paths.cert, 'cannot be used for TLS; name a PEM file with the certificate and those that lead to its CA');
  }
}

function isCertificate(text: string): boolean {
  return succeeds(() => new X509Certificate(text));
}

function isPrivateKey(text: string): boolean {
  return succeeds(() => createPrivateKey(text));
}

function succeeds(attempt: () => unknown): boolean {
  try {
    attempt();
    return true;
  } catch {
    return false;
  }
}
