// Self-signed certificates made on the spot, good or bad in a chosen way, so that no key lies in the repository.

import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import { isIP } from 'node:net';

export interface Certificate {
  /** PEM, PKCS #8. */
  readonly key: string;
  /** PEM; being self-signed, it is its own CA as well. */
  readonly cert: string;
}

export interface CertificateOptions {
  /** Host names and addresses that it is for. */
  readonly names?: readonly string[];
  readonly validFrom?: Date;
  readonly validTo?: Date;
}

/** One DER element (X.690 8.1): tag, length, content. */
function der(tag: number, ...parts: Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  const size = content.length;
  const length = size < 0x80 ? [size] : size < 0x100 ? [0x81, size] : [0x82, size >> 8, size & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), content]);
}

const sequence = (...parts: Buffer[]) => der(0x30, ...parts);
const octets = (...parts: Buffer[]) => der(0x04, ...parts);
const isTrue = der(0x01, Buffer.from([0xff]));
const oid = (hex: string) => der(0x06, Buffer.from(hex, 'hex'));
/** GeneralizedTime, which OpenSSL takes for any year though RFC 5280 wants UTCTime before 2050. */
const time = (date: Date) => der(0x18, Buffer.from(`${date.toISOString().replace(/[-:T]|\..*/g, '')}Z`));

function addressBytes(address: string): Buffer {
  if (address === '::1') return Buffer.from([...new Array<number>(15).fill(0), 1]);
  return Buffer.from(address.split('.').map(Number));
}

function alternativeNames(names: readonly string[]): Buffer {
  const entries = names.map((name) => (isIP(name) ? der(0x87, addressBytes(name)) : der(0x82, Buffer.from(name))));
  return sequence(oid('551d11'), octets(sequence(...entries)));
}

function toPem(label: string, bytes: Buffer): string {
  const lines = bytes.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

/** A P-256 key and an X.509 v3 certificate (RFC 5280) signed by it; for 127.0.0.1, ::1 and localhost, for an hour around now, if not told otherwise. */
export function createCertificate(options: CertificateOptions = {}): Certificate {
  const halfHourMs = 30 * 60_000;
  const {
    names = ['127.0.0.1', '::1', 'localhost'],
    validFrom = new Date(Date.now() - halfHourMs),
    validTo = new Date(Date.now() + halfHourMs),
  } = options;
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const ecdsaWithSha256 = sequence(oid('2a8648ce3d040302'));
  const subject = sequence(der(0x31, sequence(oid('550403'), der(0x0c, Buffer.from('sluicegate test')))));
  const isAuthority = sequence(oid('551d13'), isTrue, octets(sequence(isTrue)));
  const content = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    ecdsaWithSha256,
    subject,
    sequence(time(validFrom), time(validTo)),
    subject,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(isAuthority, alternativeNames(names))),
  );
  const signature = der(0x03, Buffer.from([0]), sign('sha256', content, privateKey));
  return {
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    cert: toPem('CERTIFICATE', sequence(content, ecdsaWithSha256, signature)),
  };
}
