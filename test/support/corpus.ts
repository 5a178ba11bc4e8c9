// Makes up what models write: prose in many languages, code, JSON, tables, emoji, arguments, long runs; seeded, from word stocks of our own.
import { createRandom } from './random.ts';

/** Words by language; how a sentence joins and ends them where that is not `' '` and `'. '`. */
interface Stock {
  readonly words: string;
  readonly join?: string;
  readonly ends?: readonly string[];
}

const CJK_ENDS = ['。', '，', '！', '；', '：', '\n\n'];

const languages: Record<string, Stock> = {
  English: {
    words:
      "the river a small engine carries water under bridges where it doesn't stop we've measured every gate twice and they're open until somebody's lantern burns out remarkably unfortunate misunderstandings throughput Thursday 1987 3.14 naïve",
  },
  German: {
    words:
      'die Schleuse öffnet sich langsam während der Wärter über Donaudampfschifffahrt und Straßenbahnhaltestellen nachdenkt aber niemand weiß genau wann Überprüfungen größer werden zwölf Geschwindigkeitsbegrenzung heute',
  },
  French: {
    words:
      "l'eau s'écoule déjà près d'une écluse où quelqu'un n'a jamais compté les bateaux très légers aujourd'hui cependant façade œuvre là-bas c'est-à-dire naïveté où ça garçon tôt",
    ends: ['. ', ' ! ', ' ; ', ' : « oui »\u00a0; ', '…\n'],
  },
  Spanish: {
    words:
      'el agua corrió mañana según la compuerta pequeña ¿cuándo? corazón pingüino años después quizás también ¡atención! riñón esdrújula',
  },
  Portuguese: { words: 'água não há coração três irmãs então amanhã você já pôde às vezes informações comporta ligação' },
  Russian: {
    words:
      'вода медленно течёт через старый шлюз пока смотритель считает лодки которые никогда не возвращаются объяснение достопримечательность ещё сегодня',
  },
  Greek: { words: 'το νερό κυλά αργά μέσα από την πύλη ενώ κάποιος μετρά τις βάρκες πάντα σήμερα αύριο' },
  Turkish: { words: 'ırmak yavaşça akıyor köprünün altında çünkü kimse kapıyı ölçmedi İstanbul güzelleştiremediklerimizdenmişsinizcesine' },
  Arabic: { words: 'الماء يجري ببطء تحت الجسر القديم بينما يعد الحارس القوارب التي لا تعود أبدا اليوم وغدا', ends: ['، ', '. ', '؟ '] },
  Hebrew: { words: 'המים זורמים לאט מתחת לגשר הישן בזמן שהשומר סופר סירות שלא חוזרות היום ומחר' },
  Hindi: { words: 'पानी धीरे धीरे पुराने पुल के नीचे बहता है और पहरेदार नावों को गिनता रहता है जो कभी नहीं लौटतीं क्योंकि', ends: ['। ', ', '] },
  Tamil: { words: 'தண்ணீர் மெதுவாக பழைய பாலத்தின் கீழ் ஓடுகிறது காவலர் படகுகளை எண்ணுகிறார்' },
  Thai: { words: 'น้ำ ไหล ช้าๆ ใต้ สะพาน เก่า ขณะที่ คนเฝ้า นับ เรือ ที่ ไม่เคย กลับมา วันนี้', join: '', ends: [' '] },
  Chinese: {
    words: '水 缓慢 地 流过 旧 闸门 而 看守人 数着 永远 不会 回来 的 小船 今天 我们 测量 了 两次 龘 編譯器',
    join: '',
    ends: CJK_ENDS,
  },
  Japanese: {
    words: '水 は ゆっくり と 古い 橋 の 下 を 流れ 番人 が 帰らない 船 を 数えて いる コンピュータ プログラム 今日',
    join: '',
    ends: CJK_ENDS,
  },
  Korean: { words: '물은 천천히 오래된 다리 아래로 흐르고 문지기는 돌아오지 않는 배를 오늘도 세고 있습니다 컴퓨터' },
  Vietnamese: { words: 'nước chảy chậm dưới cây cầu cũ trong khi người gác đếm những chiếc thuyền không bao giờ trở về hôm nay' },
};

const code: Record<string, readonly string[]> = {
  typescript: [
    'export async function NAME(WORD: string, count = NUM): Promise<void> {\n',
    '  const WORD = await this.NAME(`CASH{WORD}-NUM`, { WORD: true });\n',
    '  if (WORD !== undefined && NAME.length > NUM) return;\n',
    "  // WORD WORD WORD\n  throw new Error('WORD: it isn\\'t WORD');\n}\n\n",
    '  items.map(({ WORD, ...rest }) => ({ ...rest, NAME: WORD ?? NUM }));\n',
  ],
  python: [
    'def NAME(self, WORD: int = NUM) -> dict[str, float]:\n    """WORD the WORD."""\n',
    '    for i, WORD in enumerate(NAME):\n        yield WORD["WORD"] ** NUM\n',
    '    return {k: v for k, v in WORD.items() if not k.startswith("_")}\n\n\n',
    '\tprint(f"{WORD!r:>NUM} {NAME}")\n',
  ],
  rust: [
    "impl<'a, T: WORD> NAME<'a, T> {\n    pub fn WORD(&mut self) -> Result<(), Box<dyn Error>> {\n",
    '        let WORD = self.NAME.iter().filter(|x| x.0 != NUM).collect::<Vec<_>>();\n    }\n}\n',
  ],
  c: [
    '#include <WORD.h>\n#define NAME(x) ((x) << NUM)\n',
    'static inline void NAME(uint8_t *WORD, size_t n)\n{\n\twhile (n--) *WORD++ ^= 0xNUMf;\n}\n',
  ],
  sql: [
    "SELECT WORD, COUNT(*) AS NAME FROM WORD WHERE NAME >= 'NUM-01-01' GROUP BY 1;\n",
    'INSERT INTO NAME (WORD, WORD) VALUES (NUM, NULL);\n',
  ],
  html: [
    '<div class="WORD-NUM"><a href="/WORD?x=NUM&amp;y=WORD">WORD</a></div>\n',
    '<!-- WORD -->\n<style>.NAME{margin:0 NUMpx}</style>\n',
  ],
  shell: [
    '$ curl -sS "https://example.com/WORD?NUM" | jq \'.WORD[]\' > /tmp/NAME.json\n',
    'for f in *.WORD; do echo "CASH{f%.*}" >> NAME; done\n',
  ],
};

const EMOJI = ['😀', '👍🏽', '👩‍👩‍👧‍👦', '🇩🇪', '❤️', '🚀', '✨', '1️⃣', '🏳️‍🌈', '🫠', '→', '✓'];

export type Random = (n: number) => number;

export function pick<T>(from: readonly T[], random: Random): T {
  return from[random(from.length)]!;
}

export function prose(language: string, length: number, random: Random): string {
  const { words, join = ' ', ends = ['. ', ', ', '! ', '? ', ': ', '.\n\n', '.\n\n## ', ' — '] } = languages[language]!;
  const stock = words.split(' ');
  let text = '';
  while (text.length < length) {
    text += Array.from({ length: 3 + random(10) }, () => pick(stock, random)).join(join) + pick(ends, random);
  }
  return text;
}

function identifier(random: Random): string {
  const parts = Array.from({ length: 1 + random(3) }, () => pick(['get', 'Stream', 'usage', 'lock', 'HTTP', 'gate', 'idx', 'Öl'], random));
  return parts.join(pick(['', '_'], random));
}

export function program(language: string, length: number, random: Random): string {
  const stock = languages.English!.words.replaceAll("'", '').split(' ');
  let text = '';
  while (text.length < length) {
    text += pick(code[language]!, random).replace(/NAME|WORD|NUM|CASH/g, (hole) =>
      hole === 'CASH'
        ? '$'
        : hole === 'NAME'
          ? identifier(random)
          : hole === 'NUM'
            ? `${random(10 ** (1 + random(5)))}`
            : pick(stock, random),
    );
  }
  return `\`\`\`${language}\n${text}\`\`\`\n`;
}

export function json(length: number, random: Random, indent?: number): string {
  const value = (depth: number): unknown => {
    const kind = random(depth > 3 ? 5 : 8);
    if (kind === 0) return random(1_000_000) / 1000;
    if (kind === 1) return random(2) === 0;
    if (kind === 2) return `${pick(Object.keys(languages), random)} "quoted"\n\\ ${random(99)}`;
    if (kind < 5) return prose(pick(Object.keys(languages), random), 20, random);
    if (kind === 5) return Array.from({ length: random(6) }, () => value(depth + 1));
    return Object.fromEntries(Array.from({ length: 1 + random(5) }, () => [identifier(random), value(depth + 1)]));
  };
  const items: unknown[] = [];
  for (let size = 0; size < length; size += JSON.stringify(items.at(-1), null, indent).length)
    items.push({ id: random(1e9), value: value(0) });
  return JSON.stringify({ items }, null, indent);
}

export function table(length: number, random: Random): string {
  let text = '| Name | Größe | 数量 |\n|:-----|------:|------|\n';
  while (text.length < length)
    text += `| **${identifier(random)}** | ${random(1e5)}.${random(99)} € | ${prose('Chinese', 4, random).trim()} |\n`;
  return text;
}

export function emoji(length: number, random: Random): string {
  let text = '';
  while (text.length < length) text += pick(EMOJI, random).repeat(1 + random(3)) + pick(['', ' ', ' ok ', '!\n'], random);
  return text;
}

/** Long stretches without a blank, and of blanks. */
export const runs: Record<string, (length: number, random: Random) => string> = {
  base64: (length, random) => bytes(length * 0.75, random).toString('base64'),
  hex: (length, random) => bytes(length / 2, random).toString('hex'),
  letters: (length, random) => Array.from({ length }, () => String.fromCharCode(97 + random(26))).join(''),
  'one letter': (length) => 'a'.repeat(length),
  blanks: (length) => `x${' '.repeat(length)}y`,
  dashes: (length) => `${'-'.repeat(length)}\n`,
  digits: (length, random) => Array.from({ length }, () => random(10)).join(''),
  'minified code': (length, random) => program('typescript', length, random).replace(/\s+/g, ''),
  'Chinese without an end': (length, random) => prose('Chinese', length / 2, random).replace(/[。，！；：\n]/g, ''),
  'Thai without a blank': (length, random) => prose('Thai', length / 2, random).replaceAll(' ', ''),
  'a path': (length, random) => Array.from({ length: length / 8 }, () => identifier(random)).join('/'),
};

function bytes(length: number, random: Random): Buffer {
  return Buffer.from(Array.from({ length: Math.ceil(length) }, () => random(256)));
}

/** One completion: its class, and the texts that are tokenised apart. */
export interface Completion {
  readonly kind: string;
  readonly choices: readonly Choice[];
}

export interface Choice {
  readonly reasoning?: string;
  readonly content?: string;
  readonly calls?: readonly { readonly name: string; readonly args: string }[];
}

/** Some 300 completions, the same for the same seed; from one word to 40,000 characters. */
export function completions(seed: number): Completion[] {
  const random = createRandom(seed);
  const all: Completion[] = [];
  const one = (kind: string, content: string) => all.push({ kind, choices: [{ content }] });
  const size = () => pick([1, 30, 200, 600, 1500, 3000], random);
  for (const language of Object.keys(languages)) {
    for (let i = 0; i < 6; i++) one(language, prose(language, size(), random).slice(0, i === 0 ? 12 : undefined));
    const { words } = languages[language]!;
    one(language, prose(language, (20_000 * words.length) / Buffer.byteLength(words), random)); // more than a meter holds
  }
  for (const language of Object.keys(code)) for (let i = 0; i < 5; i++) one('code', program(language, size(), random));
  one('code', program('typescript', 40_000, random));
  for (let i = 0; i < 8; i++) one('JSON', json(size(), random));
  for (let i = 0; i < 6; i++) one('JSON, indented', json(size(), random, 2));
  one('JSON', json(30_000, random));
  for (let i = 0; i < 8; i++) one('tables', table(size(), random));
  for (let i = 0; i < 8; i++) one('emoji', emoji(size(), random));
  for (const make of Object.values(runs)) for (const length of [300, 700, 1400]) one('runs', make(length, random));
  const anyProse = (length: number) => prose(pick(Object.keys(languages), random), length, random);
  const call = () => ({ name: identifier(random), args: json(size() / 2, random) });
  for (let i = 0; i < 24; i++)
    all.push({ kind: 'choices', choices: Array.from({ length: 2 + (i % 7) }, () => ({ content: anyProse(size()) })) });
  all.push({ kind: 'choices', choices: Array.from({ length: 8 }, () => ({ content: anyProse(5000) })) });
  for (let i = 0; i < 16; i++) all.push({ kind: 'reasoning', choices: [{ reasoning: anyProse(size()), content: anyProse(size()) }] });
  for (let i = 0; i < 20; i++)
    all.push({ kind: 'calls', choices: [{ content: i % 3 ? '' : anyProse(40), calls: Array.from({ length: 1 + (i % 4) }, call) }] });
  return all;
}
